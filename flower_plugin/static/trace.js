// Runs on all our pages: live updates, relative times, filters in the URL, buttons.
import {startButtons} from "./page/buttons.js";
import {startFilters} from "./page/filters.js";
import {startLive} from "./page/live.js";
import {startRefreshing} from "./page/refresh.js";
import {startTimes} from "./page/times.js";
import {startTracing} from "./page/tracing.js";

startRefreshing();
startTimes();
startFilters();
startButtons();
startTracing();
startLive();
