// Runs on all our pages: live updates, relative times, filters in the URL, buttons.
import {startButtons} from "./page/buttons.js";
import {startFilters} from "./page/filters.js";
import {startForms} from "./page/forms.js";
import {startLive} from "./page/live.js";
import {startKeys} from "./page/palette.js";
import {startRefreshing} from "./page/refresh.js";
import {startSearch} from "./page/search.js";
import {startSelection} from "./page/selection.js";
import {startTimes} from "./page/times.js";
import {startTracing} from "./page/tracing.js";

startRefreshing();
startTimes();
startFilters();
startButtons();
startForms();
startSelection();
startSearch();
startKeys();
startTracing();
startLive();
