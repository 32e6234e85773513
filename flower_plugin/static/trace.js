// Runs on all our pages: live updates, relative times, filters in the URL, buttons.
import {startButtons} from "./page/buttons.js";
import {startFilters} from "./page/filters.js";
import {startForms} from "./page/forms.js";
import {startLive} from "./page/live.js";
import {startRefreshing} from "./page/refresh.js";
import {startSelection} from "./page/selection.js";
import {startTimes} from "./page/times.js";
import {startTracing} from "./page/tracing.js";

startRefreshing();
startTimes();
startFilters();
startButtons();
startForms();
startSelection();
startTracing();
startLive();
