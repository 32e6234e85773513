/*
 * The fast path around every run: it is written into the black box, and at its end added to its task's totals. Around
 * Celery's tracers (Observed) a run that succeeds needs no call of Python.
 *
 * The same as open_runs.py and runtime/tracers.py, which explain it and replace it where this can't be built, at a tenth
 * of the cost. All of it needs the GIL, which also replaces a lock: no other Python code runs in between.
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

typedef struct {
    PyTypeObject *token_type, *runs_type, *observed_type;
} State;

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
    char special;
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
    {"special", T_BOOL, offsetof(Token, special), 0, "Whether its end is handled in Python."},
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
    PyObject *retries_key;      /* in a task's request */
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
    char quick;                 /* whether nothing else is called when a run begins or ends */
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
    self->token_type = ((State *)PyType_GetModuleState(Py_TYPE(self)))->token_type;
    self->due_s = INFINITY;
    Py_XSETREF(self->missed, PyList_New(0));
    Py_XSETREF(self->retries_key, PyUnicode_InternFromString("retries"));
    return self->missed != NULL && self->retries_key != NULL ? 0 : -1;
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
    Py_XDECREF(self->retries_key);
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

static Token *
begin(OpenRuns *self, Counts *totals, PyObject *task_id, int retries)
{
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
    token->task_id = Py_NewRef(task_id);
    token->origin = token->describe = token->tag_before = token->observed = token->why = token->top = NULL;
    token->owner = self;
    token->started_at_s = at_s;
    token->duration_s = 0.0;
    token->retries = retries;
    token->special = 0;
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
    return token;
}

static PyObject *
runs_begin(OpenRuns *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 3 || !PyUnicode_Check(args[1])) {
        PyErr_SetString(PyExc_TypeError, "begin() takes counts, the task's id and its retries");
        return NULL;
    }
    return (PyObject *)begin(self, (Counts *)args[0], args[1], (int)PyLong_AsUnsignedLongMask(args[2]));
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

static int
end(OpenRuns *self, Token *token, int failed, int retried)
{
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
    return add(token->totals, token->started_at_s, token->started_s, token->duration_s, failed, retried);
}

static PyObject *
runs_end(OpenRuns *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 3 || !Py_IS_TYPE(args[0], self->token_type)) {
        PyErr_SetString(PyExc_TypeError, "end() takes a token, whether it has failed, and whether it is retried");
        return NULL;
    }
    return PyLong_FromLong(end(self, (Token *)args[0], args[1] == Py_True, args[2] == Py_True));
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
    {"quick", T_BOOL, offsetof(OpenRuns, quick), 0, "Whether nothing else is called when a run begins or ends."},
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

/* --- around Celery's tracers ----------------------------------------------------------------------------- */

/* What the wrapped tracers of a process have in common. */
typedef struct {
    PyObject_HEAD
    PyObject *begins, *ends, *added;    /* callables: runtime/tracers.py explains them */
    PyObject *describe;
    OpenRuns *runs;                     /* or NULL: each run begins in Python */
    PyObject *tokens;                   /* dict: of the runs in progress, by the task's id */
    PyObject *known;                    /* dict: a run of a task's id that is in it begins in Python */
} Hooks;

static int
hooks_init(Hooks *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"begins", "ends", NULL};
    PyObject *begins, *ends;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO", names, &begins, &ends))
        return -1;
    Py_XSETREF(self->begins, Py_NewRef(begins));
    Py_XSETREF(self->ends, Py_NewRef(ends));
    return 0;
}

static PyObject *
hooks_connect(Hooks *self, PyObject *args)
{
    PyObject *runs, *tokens, *known, *describe, *added;
    PyTypeObject *type = ((State *)PyType_GetModuleState(Py_TYPE(self)))->runs_type;
    if (!PyArg_ParseTuple(args, "O!O!O!OO", type, &runs, &PyDict_Type, &tokens, &PyDict_Type, &known, &describe, &added))
        return NULL;
    Py_XSETREF(self->tokens, Py_NewRef(tokens));
    Py_XSETREF(self->known, Py_NewRef(known));
    Py_XSETREF(self->describe, Py_NewRef(describe));
    Py_XSETREF(self->added, Py_NewRef(added));
    Py_XSETREF(self->runs, (OpenRuns *)Py_NewRef(runs));
    Py_RETURN_NONE;
}

static int
hooks_traverse(Hooks *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->begins);
    Py_VISIT(self->ends);
    Py_VISIT(self->added);
    Py_VISIT(self->describe);
    Py_VISIT(self->runs);
    Py_VISIT(self->tokens);
    Py_VISIT(self->known);
    return 0;
}

static int
hooks_clear(Hooks *self)
{
    Py_CLEAR(self->begins);
    Py_CLEAR(self->ends);
    Py_CLEAR(self->added);
    Py_CLEAR(self->describe);
    Py_CLEAR(self->runs);
    Py_CLEAR(self->tokens);
    Py_CLEAR(self->known);
    return 0;
}

static void
hooks_dealloc(Hooks *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    hooks_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyObject *hooks_observed(Hooks *, PyObject *const *, Py_ssize_t);

static PyMethodDef hooks_methods[] = {
    {"observed", (PyCFunction)(void (*)(void))hooks_observed, METH_FASTCALL, "observed(tracer, task) -> tracer"},
    {"connect", (PyCFunction)hooks_connect, METH_VARARGS,
     "connect(runs, tokens, known, describe, added): begin and end most runs without a call of Python."},
    {NULL},
};

static PyType_Slot hooks_slots[] = {
    {Py_tp_init, hooks_init},
    {Py_tp_dealloc, hooks_dealloc},
    {Py_tp_traverse, hooks_traverse},
    {Py_tp_clear, hooks_clear},
    {Py_tp_methods, hooks_methods},
    {0, NULL},
};

static PyType_Spec hooks_spec = {
    "celery_trace.process._open_runs.Hooks", sizeof(Hooks), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, hooks_slots,
};

/* A task's tracer, with its runs observed. */
typedef struct {
    PyObject_HEAD
    PyObject *tracer, *task;
    Hooks *hooks;
    Counts *totals;             /* of the task in `runs`, once it has run there; or NULL */
    OpenRuns *runs;
} Observed;

typedef struct {
    PyObject *task_id, *args, *kwargs, *request;
} Call;

static PyObject *
hooks_observed(Hooks *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 2 || self->begins == NULL) {
        PyErr_SetString(PyExc_TypeError, "observed() takes a tracer and its task");
        return NULL;
    }
    PyTypeObject *type = ((State *)PyType_GetModuleState(Py_TYPE(self)))->observed_type;
    Observed *made = (Observed *)type->tp_alloc(type, 0);
    if (made == NULL)
        return NULL;
    made->tracer = Py_NewRef(args[0]);
    made->task = Py_NewRef(args[1]);
    made->hooks = (Hooks *)Py_NewRef(self);
    return (PyObject *)made;
}

static int
observed_traverse(Observed *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->tracer);
    Py_VISIT(self->task);
    Py_VISIT(self->hooks);
    Py_VISIT(self->totals);
    Py_VISIT(self->runs);
    return 0;
}

static int
observed_clear(Observed *self)
{
    Py_CLEAR(self->tracer);
    Py_CLEAR(self->task);
    Py_CLEAR(self->hooks);
    Py_CLEAR(self->totals);
    Py_CLEAR(self->runs);
    return 0;
}

static void
observed_dealloc(Observed *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    observed_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* Begin a run in Python. False, with an error, if the run must not begin. */
static int
begin_in_python(Observed *self, const Call *call)
{
    Hooks *hooks = self->hooks;
    PyObject *args[] = {self->task, call->task_id, call->request};
    PyObject *result = PyObject_Vectorcall(hooks->begins, args, 3, NULL);
    if (result == NULL)
        return 0;
    Py_DECREF(result);
    if (hooks->runs != NULL) {          /* which totals it is counted in */
        Token *token = (Token *)PyDict_GetItemWithError(hooks->tokens, call->task_id);
        if (token == NULL)
            PyErr_Clear();
        else if (Py_IS_TYPE(token, hooks->runs->token_type) && token->owner == hooks->runs) {
            Py_XSETREF(self->totals, (Counts *)Py_NewRef(token->totals));
            Py_XSETREF(self->runs, (OpenRuns *)Py_NewRef(hooks->runs));
        }
    }
    return 1;
}

/* Begin a run, if nothing has to be called for it. NULL, without an error, if it has to begin in Python. */
static Token *
begin_quickly(Observed *self, const Call *call)
{
    Hooks *hooks = self->hooks;
    OpenRuns *runs = hooks->runs;
    if (runs == NULL || !runs->quick || self->totals == NULL || self->runs != runs || !PyUnicode_CheckExact(call->task_id) ||
        !PyDict_CheckExact(call->request))
        return NULL;
    if (PyDict_GET_SIZE(hooks->known) && PyDict_Contains(hooks->known, call->task_id) != 0) {
        PyErr_Clear();
        return NULL;
    }
    PyObject *number = PyDict_GetItemWithError(call->request, runs->retries_key);
    int retries = number != NULL && PyLong_CheckExact(number) ? (int)PyLong_AsUnsignedLongMask(number) : 0;
    Token *token = PyErr_Occurred() ? NULL : begin(runs, self->totals, call->task_id, retries);
    if (token == NULL) {
        PyErr_Clear();
        return NULL;
    }
    token->origin = Py_NewRef(call->request);
    token->describe = Py_NewRef(hooks->describe);
    if (PyDict_SetItem(hooks->tokens, call->task_id, (PyObject *)token) < 0)
        PyErr_Clear();                  /* the run is counted all the same */
    return token;
}

/* End a successful run that began quickly. False if that has to be done in Python. */
static int
end_quickly(Observed *self, Token *token, const Call *call)
{
    Hooks *hooks = self->hooks;
    OpenRuns *runs = self->runs;
    if (hooks->runs != runs || !runs->quick || token->special || token->owner != runs)
        return 0;
    if (PyDict_DelItem(hooks->tokens, call->task_id) < 0)
        PyErr_Clear();
    int added = end(runs, token, 0, 0);
    if (added != ADDED) {
        PyObject *number = PyLong_FromLong(added), *args[] = {(PyObject *)token, number};
        PyObject *result = number != NULL ? PyObject_Vectorcall(hooks->added, args, 2, NULL) : NULL;
        Py_XDECREF(number);
        Py_XDECREF(result);
    }
    return 1;
}

/* Call `ends`: with the state alone after a success, else with what the run was called with, and its error. */
static PyObject *
end_in_python(Observed *self, const Call *call, PyObject *state, int in_full, PyObject *error)
{
    PyObject *args[] = {self->task, call->task_id, state, call->args, call->kwargs, call->request, error};
    PyObject *names = NULL;
    if (in_full && (names = Py_BuildValue(error != NULL ? "(ssss)" : "(sss)", "args", "kwargs", "request", "retval")) == NULL)
        return NULL;
    PyObject *result = PyObject_Vectorcall(self->hooks->ends, args, 3, names);
    Py_XDECREF(names);
    return result;
}

/* An error leaves the tracer, such as SystemExit. */
static void
end_by_error(Observed *self, const Call *call)
{
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *error = PyErr_GetRaisedException();
#else
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
#endif
    PyObject *before = PyErr_GetHandledException();
    PyErr_SetHandledException(error);           /* as in an `except` clause */
    PyObject *result = end_in_python(self, call, Py_None, 1, NULL);
    PyErr_SetHandledException(before);
    Py_XDECREF(before);
    int passes = result != NULL;                /* or a later error takes its place */
    Py_XDECREF(result);
#if PY_VERSION_HEX >= 0x030C0000
    if (passes)
        PyErr_SetRaisedException(error);
    else
        Py_XDECREF(error);
#else
    if (passes)
        PyErr_Restore(type, error, traceback);
    else {
        Py_XDECREF(type);
        Py_XDECREF(error);
        Py_XDECREF(traceback);
    }
#endif
}

/* A run has left the tracer with its result. False with an error that passes through. */
static int
end_by_result(Observed *self, Token *token, const Call *call, PyObject *returned)
{
    PyObject *info = Py_None, *lasted = Py_None, *result = NULL;
    if (PyTuple_Check(returned) && PyTuple_GET_SIZE(returned) > 2) {
        info = PyTuple_GET_ITEM(returned, 1);
        lasted = PyTuple_GET_ITEM(returned, 2);
    }
    if (info == Py_None) {
        /* Without a duration nothing ran: a redelivered message of a task that has succeeded before. */
        if (token != NULL && lasted != Py_None && end_quickly(self, token, call))
            return !PyErr_Occurred();
        PyObject *state = PyUnicode_FromString(lasted != Py_None ? "SUCCESS" : "IGNORED");
        if (state != NULL)
            result = end_in_python(self, call, state, 0, NULL);
        Py_XDECREF(state);
    }
    else {
        PyObject *state = PyObject_GetAttrString(info, "state");
        PyObject *error = state != NULL ? PyObject_GetAttrString(info, "retval") : NULL;
        if (error != NULL)
            result = end_in_python(self, call, state, 1, error);
        Py_XDECREF(state);
        Py_XDECREF(error);
    }
    Py_XDECREF(result);
    return result != NULL;
}

static PyObject *
observed_call(Observed *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"uuid", "args", "kwargs", "request", NULL};
    Call call = {.request = Py_None};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOO|O", names, &call.task_id, &call.args, &call.kwargs, &call.request))
        return NULL;
    Token *token = begin_quickly(self, &call);
    if (token == NULL && !begin_in_python(self, &call))
        return NULL;
    PyObject *passed[] = {call.task_id, call.args, call.kwargs, call.request};
    PyObject *returned = PyObject_Vectorcall(self->tracer, passed, 4, NULL);
    if (returned == NULL)
        end_by_error(self, &call);
    else if (!end_by_result(self, token, &call, returned))
        Py_CLEAR(returned);
    Py_XDECREF(token);
    return returned;
}

static PyMemberDef observed_members[] = {
    {"__wrapped__", T_OBJECT, offsetof(Observed, tracer), READONLY, "Celery's tracer."},
    {NULL},
};

static PyType_Slot observed_slots[] = {
    {Py_tp_dealloc, observed_dealloc},
    {Py_tp_traverse, observed_traverse},
    {Py_tp_clear, observed_clear},
    {Py_tp_members, observed_members},
    {Py_tp_call, observed_call},
    {0, NULL},
};

static PyType_Spec observed_spec = {
    "celery_trace.process._open_runs.Observed", sizeof(Observed), 0,
    Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_DISALLOW_INSTANTIATION, observed_slots,
};

/* --- the module ---------------------------------------------------------------------------------------- */

static int
fill(PyObject *module)
{
    State *state = PyModule_GetState(module);
    state->token_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &token_spec, NULL);
    state->runs_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &runs_spec, NULL);
    state->observed_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &observed_spec, NULL);
    PyObject *counts = PyType_FromModuleAndSpec(module, &counts_spec, NULL);
    PyObject *hooks = PyType_FromModuleAndSpec(module, &hooks_spec, NULL);
    int failed = state->token_type == NULL || state->runs_type == NULL || state->observed_type == NULL || counts == NULL ||
                 hooks == NULL || PyModule_AddObjectRef(module, "Token", (PyObject *)state->token_type) < 0 ||
                 PyModule_AddObjectRef(module, "OpenRuns", (PyObject *)state->runs_type) < 0 ||
                 PyModule_AddObjectRef(module, "Counts", counts) < 0 ||
                 PyModule_AddObjectRef(module, "Hooks", hooks) < 0;
    Py_XDECREF(counts);
    Py_XDECREF(hooks);
    return failed ? -1 : 0;
}

static int
traverse(PyObject *module, visitproc visit, void *arg)
{
    State *state = PyModule_GetState(module);
    Py_VISIT(state->token_type);
    Py_VISIT(state->runs_type);
    Py_VISIT(state->observed_type);
    return 0;
}

static int
clear(PyObject *module)
{
    State *state = PyModule_GetState(module);
    Py_CLEAR(state->token_type);
    Py_CLEAR(state->runs_type);
    Py_CLEAR(state->observed_type);
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
