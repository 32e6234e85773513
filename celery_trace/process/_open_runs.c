/*
 * The fast path around every run: it is written into the black box, and at its end added to its task's totals.
 *
 * The same as open_runs.py, which explains it and replaces it where this can't be built, at a tenth of the cost. All of it
 * needs the GIL, which also replaces a lock: no other Python code runs in between.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#ifdef Py_GIL_DISABLED
#error "This relies on the GIL"
#endif

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#define BUCKETS 28              /* of durations: Histogram.BUCKETS */
#define MOST_PLACES 64
#define PLACE_BYTES 512
#define TEXT_AT (1 + 8 + 8 + 4) /* after the byte for "taken": start, thread, retries */
#define TEXT_BYTES (PLACE_BYTES - TEXT_AT)
#define COUNT_BYTES 8           /* of runs that have ended, before the places */

enum { EMPTY = 0, RUNNING = 1 };
enum { NO_PLACE = -1, NO_TAG = 0 };
/* The result of adding a run: whether to write it as a record, and why. open_runs.py has the same. */
enum { NEXT_PERIOD = -1, ADDED = 0, OUTLIER = 1, SCATTERED = 2 };

static double
seconds(clockid_t clock)
{
    struct timespec at;
    clock_gettime(clock, &at);
    return (double)at.tv_sec + at.tv_nsec / 1e9;
}

/* --- counts ------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *label;            /* bytes: what the black box shows for each run */
    PyObject *tag;              /* an int: the heap sampler's tag */
    double ends_at_s, scatter_due_s, duration_s, duration_max_s;
    long long runs, failed, retried;
    int slow_bucket;
    char dirty;
    long long durations[BUCKETS];
} Counts;

static int
counts_init(Counts *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"label", NULL};
    PyObject *label;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "S", names, &label))
        return -1;
    Py_XSETREF(self->label, Py_NewRef(label));
    Py_XSETREF(self->tag, PyLong_FromLong(0));
    self->slow_bucket = BUCKETS;
    return self->tag != NULL ? 0 : -1;
}

static void
counts_dealloc(Counts *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->label);
    Py_XDECREF(self->tag);
    type->tp_free(self);
    Py_DECREF(type);
}

/* int(duration_s * 10_000).bit_length(), at most the last bucket. */
static int
bucket_of(double duration_s)
{
    double tenths_ms = duration_s * 10000.0;
    if (!(tenths_ms >= 1.0))
        return 0;
    int exponent;
    frexp(tenths_ms, &exponent);
    return exponent < BUCKETS ? exponent : BUCKETS - 1;
}

static int
add(Counts *self, double started_at_s, double started_s, double duration_s, int failed, int retried)
{
    if (started_at_s >= self->ends_at_s)
        return NEXT_PERIOD;
    int bucket = bucket_of(duration_s);
    self->runs++;
    self->durations[bucket]++;
    self->duration_s += duration_s;
    if (duration_s > self->duration_max_s)
        self->duration_max_s = duration_s;
    if (failed)
        self->failed++;
    else if (retried)
        self->retried++;
    self->dirty = 1;
    return bucket >= self->slow_bucket ? OUTLIER : started_s >= self->scatter_due_s ? SCATTERED : ADDED;
}

static PyObject *
counts_read(Counts *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *durations = PyList_New(BUCKETS);
    for (int i = 0; durations != NULL && i < BUCKETS; i++) {
        PyObject *count = PyLong_FromLongLong(self->durations[i]);
        if (count == NULL)
            Py_CLEAR(durations);
        else
            PyList_SET_ITEM(durations, i, count);
    }
    if (durations == NULL)
        return NULL;
    return Py_BuildValue("LLLddN", self->runs, self->failed, self->retried, self->duration_s, self->duration_max_s,
                         durations);
}

static PyObject *
counts_take(Counts *self, PyObject *argument)
{
    double ends_at_s = PyFloat_AsDouble(argument);
    if (ends_at_s == -1.0 && PyErr_Occurred())
        return NULL;
    PyObject *result = counts_read(self, NULL);
    if (result == NULL)
        return NULL;
    self->ends_at_s = ends_at_s;
    self->dirty = 0;
    self->runs = self->failed = self->retried = 0;
    self->duration_s = self->duration_max_s = 0.0;
    memset(self->durations, 0, sizeof self->durations);
    return result;
}

static PyMemberDef counts_members[] = {
    {"label", T_OBJECT_EX, offsetof(Counts, label), READONLY, "What the black box shows for each run."},
    {"tag", T_OBJECT_EX, offsetof(Counts, tag), 0, "The heap sampler's tag of each run."},
    {"ends_at_s", T_DOUBLE, offsetof(Counts, ends_at_s), 0, "When the period ends."},
    {"scatter_due_s", T_DOUBLE, offsetof(Counts, scatter_due_s), 0, "From when on a run is written as a sample."},
    {"slow_bucket", T_INT, offsetof(Counts, slow_bucket), 0, "The duration bucket from which a run is an outlier."},
    {"dirty", T_BOOL, offsetof(Counts, dirty), 0, "Whether something was added that is not written yet."},
    {NULL},
};

static PyMethodDef counts_methods[] = {
    {"read", (PyCFunction)counts_read, METH_NOARGS, "The counts of this period so far."},
    {"take", (PyCFunction)counts_take, METH_O, "The same, and begin a new period that ends at the given time."},
    {NULL},
};

static PyType_Slot counts_slots[] = {
    {Py_tp_init, counts_init},
    {Py_tp_dealloc, counts_dealloc},
    {Py_tp_members, counts_members},
    {Py_tp_methods, counts_methods},
    {0, NULL},
};

static PyType_Spec counts_spec = {
    "celery_trace.process._open_runs.Counts", sizeof(Counts), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, counts_slots,
};

/* --- a run in progress --------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Counts *totals;
    PyObject *task_id, *origin, *describe, *tag_before;
    PyObject *observed, *why, *top;
    const void *owner;          /* the OpenRuns that made it, only to compare */
    double started_at_s, started_s, duration_s;
    int retries, shared, place;
} Token;

static void
token_dealloc(Token *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->totals);
    Py_XDECREF(self->task_id);
    Py_XDECREF(self->origin);
    Py_XDECREF(self->describe);
    Py_XDECREF(self->observed);
    Py_XDECREF(self->why);
    Py_XDECREF(self->top);
    Py_XDECREF(self->tag_before);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyMemberDef token_members[] = {
    {"totals", T_OBJECT, offsetof(Token, totals), READONLY, NULL},
    {"task_id", T_OBJECT, offsetof(Token, task_id), READONLY, NULL},
    {"origin", T_OBJECT, offsetof(Token, origin), 0, "The request that the run came from."},
    {"describe", T_OBJECT, offsetof(Token, describe), 0, "Reads queue and root id from it."},
    {"observed", T_OBJECT, offsetof(Token, observed), 0, "The probes that observe the run, and their state."},
    {"why", T_OBJECT, offsetof(Token, why), 0, "Why a probe wants the run written as a record."},
    {"top", T_OBJECT, offsetof(Token, top), 0, "The run's top differences."},
    {"started_at_s", T_DOUBLE, offsetof(Token, started_at_s), READONLY, "Seconds since the epoch."},
    {"started_s", T_DOUBLE, offsetof(Token, started_s), READONLY, "By the monotonic clock."},
    {"duration_s", T_DOUBLE, offsetof(Token, duration_s), READONLY, "Once it has ended."},
    {"retries", T_INT, offsetof(Token, retries), READONLY, NULL},
    {"shared", T_INT, offsetof(Token, shared), READONLY, "The most concurrent runs."},
    {NULL},
};

static PyType_Slot token_slots[] = {{Py_tp_dealloc, token_dealloc}, {Py_tp_members, token_members}, {0, NULL}};

static PyType_Spec token_spec = {
    "celery_trace.process._open_runs.Token", sizeof(Token), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, token_slots,
};

/* --- all of them --------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyTypeObject *token_type;
    PyObject *now, *monotonic, *ident, *enter, *leave;  /* callables; None for the system's, or for none */
    PyObject *latest;           /* the counts of the run that began last, or NULL */
    Py_buffer buffer;           /* of the black box's file; buf is NULL without one */
    Py_ssize_t at;
    uint64_t threads[MOST_PLACES];      /* by place; 0 for a free one */
    Token *tokens[MOST_PLACES];         /* by place; NULL for a free one */
    double due_s;               /* when a sample is due, by the monotonic clock */
    PyObject *missed;           /* list: a thread and its run for each run that ended while a sample was overdue */
    int used;                   /* places that have ever been taken */
    int count, most;
    long long ended;
} OpenRuns;

/* The number of runs that have ended, as the black box has it. */
static void
write_ended(OpenRuns *self)
{
    if (self->buffer.buf != NULL && self->at >= COUNT_BYTES)
        memcpy((char *)self->buffer.buf + self->at - COUNT_BYTES, &self->ended, COUNT_BYTES);
}

static void
forget_tokens(OpenRuns *self)
{
    for (int i = 0; i < MOST_PLACES; i++)
        Py_CLEAR(self->tokens[i]);
}

static int
runs_init(OpenRuns *self, PyObject *args, PyObject *kwargs)
{
    if (!PyArg_ParseTuple(args, "") || (kwargs != NULL && PyDict_GET_SIZE(kwargs)))
        return -1;
    self->most = 1;
    Py_XSETREF(self->now, Py_NewRef(Py_None));
    Py_XSETREF(self->monotonic, Py_NewRef(Py_None));
    Py_XSETREF(self->ident, Py_NewRef(Py_None));
    Py_XSETREF(self->enter, Py_NewRef(Py_None));
    Py_XSETREF(self->leave, Py_NewRef(Py_None));
    self->token_type = *(PyTypeObject **)PyType_GetModuleState(Py_TYPE(self));
    self->due_s = INFINITY;
    Py_XSETREF(self->missed, PyList_New(0));
    return self->missed != NULL ? 0 : -1;
}

static int
runs_traverse(OpenRuns *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->now);
    Py_VISIT(self->monotonic);
    Py_VISIT(self->ident);
    Py_VISIT(self->enter);
    Py_VISIT(self->leave);
    Py_VISIT(self->latest);
    Py_VISIT(self->missed);
    for (int i = 0; i < self->used; i++)
        Py_VISIT(self->tokens[i]);
    return 0;
}

static int
runs_clear(OpenRuns *self)
{
    Py_CLEAR(self->now);
    Py_CLEAR(self->monotonic);
    Py_CLEAR(self->ident);
    Py_CLEAR(self->enter);
    Py_CLEAR(self->leave);
    Py_CLEAR(self->latest);
    Py_CLEAR(self->missed);
    forget_tokens(self);
    return 0;
}

static void
runs_dealloc(OpenRuns *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    runs_clear(self);
    if (self->buffer.buf != NULL)
        PyBuffer_Release(&self->buffer);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *
runs_write_to(OpenRuns *self, PyObject *args)
{
    PyObject *target;
    Py_ssize_t at = 0;
    if (!PyArg_ParseTuple(args, "O|n", &target, &at))
        return NULL;
    if (self->buffer.buf != NULL)
        PyBuffer_Release(&self->buffer);
    self->buffer.buf = NULL;
    memset(self->threads, 0, sizeof self->threads);
    forget_tokens(self);
    self->used = 0;
    if (target == Py_None)
        Py_RETURN_NONE;
    if (PyObject_GetBuffer(target, &self->buffer, PyBUF_WRITABLE) < 0) {
        self->buffer.buf = NULL;
        return NULL;
    }
    if (at < 0 || at + MOST_PLACES * PLACE_BYTES > self->buffer.len) {
        PyBuffer_Release(&self->buffer);
        self->buffer.buf = NULL;
        PyErr_SetString(PyExc_ValueError, "the buffer is too small for the places");
        return NULL;
    }
    self->at = at;
    write_ended(self);
    Py_RETURN_NONE;
}

/* Seconds by a callable, or by the system's clock if that is None. Sets an error if it fails. */
static double
read_clock(PyObject *clock, clockid_t system)
{
    if (clock == Py_None)
        return seconds(system);
    PyObject *now = PyObject_CallNoArgs(clock);
    double now_s = now != NULL ? PyFloat_AsDouble(now) : -1.0;
    Py_XDECREF(now);
    return now_s;
}

/* The number of this thread or greenlet. Returns 0 and sets an error if it fails. */
static uint64_t
thread_of(OpenRuns *self)
{
    if (self->ident == Py_None)
        return PyThread_get_thread_ident();
    PyObject *number = PyObject_CallNoArgs(self->ident);
    if (number == NULL)
        return 0;
    uint64_t ident = PyLong_AsUnsignedLongLongMask(number);
    Py_DECREF(number);
    return ident;
}

/* Write a run into a place of the black box; none if the thread has one already, or none is free. */
static int
take_place(OpenRuns *self, uint64_t thread, const Counts *totals, PyObject *task_id, int32_t retries, double at_s)
{
    int free_one = NO_PLACE;
    for (int i = 0; i < self->used; i++) {
        if (self->threads[i] == thread)
            return NO_PLACE;
        if (self->threads[i] == 0 && free_one == NO_PLACE)
            free_one = i;
    }
    if (free_one == NO_PLACE && self->used < MOST_PLACES)
        free_one = self->used++;
    if (free_one == NO_PLACE)
        return NO_PLACE;
    Py_ssize_t id_bytes = 0;
    PyObject *escaped = NULL;
    const char *id = PyUnicode_AsUTF8AndSize(task_id, &id_bytes);
    if (id == NULL) {           /* it has characters that can't be encoded */
        PyErr_Clear();
        escaped = PyUnicode_AsEncodedString(task_id, "utf-8", "backslashreplace");
        if (escaped == NULL) {
            PyErr_Clear();
            return NO_PLACE;
        }
        id = PyBytes_AS_STRING(escaped);
        id_bytes = PyBytes_GET_SIZE(escaped);
    }
    char *place = (char *)self->buffer.buf + self->at + free_one * PLACE_BYTES, *text = place + TEXT_AT;
    Py_ssize_t label_bytes = PyBytes_GET_SIZE(totals->label);
    id_bytes = id_bytes < TEXT_BYTES ? id_bytes : TEXT_BYTES;
    label_bytes = label_bytes < TEXT_BYTES - id_bytes ? label_bytes : TEXT_BYTES - id_bytes;
    memcpy(place + 1, &at_s, 8);
    memcpy(place + 9, &thread, 8);
    memcpy(place + 17, &retries, 4);
    memcpy(text, id, id_bytes);
    memcpy(text + id_bytes, PyBytes_AS_STRING(totals->label), label_bytes);
    memset(text + id_bytes + label_bytes, 0, TEXT_BYTES - id_bytes - label_bytes);
    __atomic_store_n(place, RUNNING, __ATOMIC_RELEASE);     /* last: a process that is killed before leaves no half-written run */
    self->threads[free_one] = thread;
    Py_XDECREF(escaped);
    return free_one;
}

static PyObject *
runs_begin(OpenRuns *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 3 || !PyUnicode_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "begin() takes counts, the task's id and its retries");
        return NULL;
    }
    Counts *totals = (Counts *)args[0];
    int retries = (int)PyLong_AsUnsignedLongMask(args[2]);
    double at_s = read_clock(self->now, CLOCK_REALTIME);
    if (PyErr_Occurred())
        return NULL;
    uint64_t thread = self->buffer.buf != NULL ? thread_of(self) : 0;
    if (PyErr_Occurred())
        return NULL;
    Token *token = PyObject_New(Token, self->token_type);
    if (token == NULL)
        return NULL;
    token->totals = (Counts *)Py_NewRef(totals);
    token->task_id = Py_NewRef(args[1]);
    token->origin = token->describe = token->tag_before = token->observed = token->why = token->top = NULL;
    token->owner = self;
    token->started_at_s = at_s;
    token->duration_s = 0.0;
    token->retries = retries;
    token->place = thread ? take_place(self, thread, totals, token->task_id, retries, at_s) : NO_PLACE;
    if (token->place != NO_PLACE)
        Py_XSETREF(self->tokens[token->place], (Token *)Py_NewRef(token));
    token->shared = ++self->count;
    if (token->shared > self->most)
        self->most = token->shared;
    Py_XSETREF(self->latest, Py_NewRef(totals));
    if (self->enter != Py_None) {
        token->tag_before = PyObject_CallOneArg(self->enter, totals->tag);
        if (token->tag_before == NULL)
            PyErr_WriteUnraisable(self->enter);
    }
    token->started_s = read_clock(self->monotonic, CLOCK_MONOTONIC);
    if (PyErr_Occurred())
        PyErr_Clear();
    return (PyObject *)token;
}

/* A sample was due in this run and has not been taken: the run did not release the GIL in between. */
static void
note_missed(OpenRuns *self, Token *token)
{
    PyObject *pair = NULL;
    if (PyList_GET_SIZE(self->missed) < MOST_PLACES)
        pair = Py_BuildValue("KO", (unsigned long long)self->threads[token->place], token);
    if (pair != NULL && PyList_Append(self->missed, pair) < 0)
        PyErr_Clear();
    else if (pair == NULL)
        PyErr_Clear();
    Py_XDECREF(pair);
}

static PyObject *
runs_end(OpenRuns *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 3 || !Py_IS_TYPE(args[0], self->token_type)) {
        PyErr_SetString(PyExc_TypeError, "end() takes a token, whether it has failed, and whether it is retried");
        return NULL;
    }
    Token *token = (Token *)args[0];
    token->duration_s = read_clock(self->monotonic, CLOCK_MONOTONIC) - token->started_s;
    if (PyErr_Occurred())
        PyErr_Clear();
    int is_ours = token->owner == self;     /* and not another recorder's */
    token->owner = NULL;
    if (token->tag_before != NULL && self->leave != Py_None) {
        /* Coroutines of a thread end in any order: the tag before may be that of a run that has ended. */
        PyObject *before = is_ours && self->count == 1 ? PyLong_FromLong(NO_TAG) : Py_NewRef(token->tag_before);
        PyObject *result = before != NULL ? PyObject_CallOneArg(self->leave, before) : NULL;
        if (result == NULL)
            PyErr_WriteUnraisable(self->leave);
        Py_XDECREF(before);
        Py_XDECREF(result);
    }
    if (is_ours && token->place != NO_PLACE && self->buffer.buf != NULL && self->threads[token->place]) {
        if (token->started_s <= self->due_s && self->due_s < token->started_s + token->duration_s)
            note_missed(self, token);
        __atomic_store_n((char *)self->buffer.buf + self->at + token->place * PLACE_BYTES, EMPTY, __ATOMIC_RELEASE);
        self->threads[token->place] = 0;
        Py_CLEAR(self->tokens[token->place]);   /* the caller has another reference */
        token->place = NO_PLACE;
    }
    self->ended++;
    write_ended(self);
    if (self->count > token->shared)
        token->shared = self->count;
    if (is_ours && --self->count == 0)
        Py_CLEAR(self->latest);
    return PyLong_FromLong(add(token->totals, token->started_at_s, token->started_s, token->duration_s,
                               args[1] == Py_True, args[2] == Py_True));
}

static PyObject *
runs_add(OpenRuns *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 3 || !Py_IS_TYPE(args[0], self->token_type)) {
        PyErr_SetString(PyExc_TypeError, "add() takes what end() takes");
        return NULL;
    }
    Token *token = (Token *)args[0];
    return PyLong_FromLong(add(token->totals, token->started_at_s, token->started_s, token->duration_s,
                               args[1] == Py_True, args[2] == Py_True));
}

static PyObject *
runs_in_progress(OpenRuns *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list != NULL && i < self->used; i++) {
        if (self->tokens[i] == NULL)
            continue;
        /* An allocation may run a finalizer that ends the run. */
        PyObject *token = Py_NewRef(self->tokens[i]);
        PyObject *pair = Py_BuildValue("KN", (unsigned long long)self->threads[i], token);
        if (pair == NULL || PyList_Append(list, pair) < 0)
            Py_CLEAR(list);
        Py_XDECREF(pair);
    }
    return list;
}

static PyObject *
runs_take_missed(OpenRuns *self, PyObject *Py_UNUSED(ignored))
{
    PyObject *fresh = PyList_New(0);
    if (fresh == NULL)
        return NULL;
    PyObject *missed = self->missed;
    self->missed = fresh;
    return missed;
}

static PyMemberDef runs_members[] = {
    {"now", T_OBJECT, offsetof(OpenRuns, now), 0, "Returns the time, seconds since the epoch; None for the system's."},
    {"monotonic", T_OBJECT, offsetof(OpenRuns, monotonic), 0, "Returns a monotonic time; None for the system's."},
    {"ident", T_OBJECT, offsetof(OpenRuns, ident), 0, "Returns the greenlet's number; None if runs have threads."},
    {"enter", T_OBJECT, offsetof(OpenRuns, enter), 0, "Called with the tag of a run that begins; None for none."},
    {"leave", T_OBJECT, offsetof(OpenRuns, leave), 0, "Called at its end with what enter() has returned."},
    {"latest", T_OBJECT, offsetof(OpenRuns, latest), READONLY, "The counts of the run that began last; None for none."},
    {"count", T_INT, offsetof(OpenRuns, count), READONLY, "Runs in progress."},
    {"most", T_INT, offsetof(OpenRuns, most), READONLY, "The most that were in progress at once."},
    {"due_s", T_DOUBLE, offsetof(OpenRuns, due_s), 0, "When a sample is due, by the monotonic clock."},
    {"ended", T_LONGLONG, offsetof(OpenRuns, ended), READONLY, "Runs that have ended."},
    {NULL},
};

static PyMethodDef runs_methods[] = {
    {"write_to", (PyCFunction)runs_write_to, METH_VARARGS, "Write runs into a buffer from an offset on; None: stop."},
    {"begin", (PyCFunction)(void (*)(void))runs_begin, METH_FASTCALL, "begin(counts, task_id, retries) -> Token"},
    {"end", (PyCFunction)(void (*)(void))runs_end, METH_FASTCALL, "end(token, failed, retried) -> what add() returns"},
    {"add", (PyCFunction)(void (*)(void))runs_add, METH_FASTCALL, "Add a run that has ended to its counts."},
    {"in_progress", (PyCFunction)runs_in_progress, METH_NOARGS, "The runs in the buffer, each with its thread."},
    {"take_missed", (PyCFunction)runs_take_missed, METH_NOARGS, "The runs that ended while a sample was overdue."},
    {NULL},
};

static PyType_Slot runs_slots[] = {
    {Py_tp_init, runs_init},
    {Py_tp_dealloc, runs_dealloc},
    {Py_tp_traverse, runs_traverse},
    {Py_tp_clear, runs_clear},
    {Py_tp_members, runs_members},
    {Py_tp_methods, runs_methods},
    {0, NULL},
};

static PyType_Spec runs_spec = {
    "celery_trace.process._open_runs.OpenRuns", sizeof(OpenRuns), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, runs_slots,
};

/* --- the module ---------------------------------------------------------------------------------------- */

typedef struct {
    PyTypeObject *token_type;
} State;

static int
fill(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->token_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &token_spec, NULL);
    PyObject *counts = PyType_FromModuleAndSpec(module, &counts_spec, NULL);
    PyObject *runs = PyType_FromModuleAndSpec(module, &runs_spec, NULL);
    int failed = state->token_type == NULL || counts == NULL || runs == NULL ||
                 PyModule_AddObjectRef(module, "Token", (PyObject *)state->token_type) < 0 ||
                 PyModule_AddObjectRef(module, "Counts", counts) < 0 ||
                 PyModule_AddObjectRef(module, "OpenRuns", runs) < 0;
    Py_XDECREF(counts);
    Py_XDECREF(runs);
    return failed ? -1 : 0;
}

static int
traverse(PyObject *module, visitproc visit, void *arg)
{
    Py_VISIT(((State *)PyModule_GetState(module))->token_type);
    return 0;
}

static int
clear(PyObject *module)
{
    Py_CLEAR(((State *)PyModule_GetState(module))->token_type);
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, fill},
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "celery_trace.process._open_runs",
    .m_doc = "The runs in progress of a process. See open_runs.py.",
    .m_size = sizeof(State),
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
};

PyMODINIT_FUNC
PyInit__open_runs(void)
{
    return PyModuleDef_Init(&definition);
}
