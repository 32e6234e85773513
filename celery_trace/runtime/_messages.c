/*
 * The fast path of each message that a worker's main process consumes: what is known of it, and the counts of its task.
 *
 * The same as messages.py and consumed.py, which explain it and replace it where this can't be built, at a fifth of the
 * cost. Whatever is unusual about a message is left to Python: then nothing has been changed here. All of it needs the
 * GIL, which also replaces a lock.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#ifdef Py_GIL_DISABLED
#error "This relies on the GIL"
#endif

#include <math.h>
#include <string.h>
#include <time.h>

#define BUCKETS 28              /* of durations: Histogram.BUCKETS */

/* What Quick.accepted() returns. messages.py has the same. */
enum { IN_PYTHON = 0, DONE = 1, NOTE_START = 2 };

static PyTypeObject *counts_type, *message_type;
static PyObject *s_task_consumer, *s_active_tags, *s_request_dict, *s_delivery_info, *s_eta, *s_task, *s_name, *s_acks_late,
    *s_message, *s_consumer_tag, *s_exchange, *s_routing_key, *s_redelivered, *s_retries, *s_trace_message, *s_time_start,
    *s_id, *zero;

static const struct { PyObject **at; const char *text; } texts[] = {
    {&s_task_consumer, "task_consumer"}, {&s_active_tags, "_active_tags"}, {&s_request_dict, "request_dict"},
    {&s_delivery_info, "delivery_info"}, {&s_eta, "eta"}, {&s_task, "task"}, {&s_name, "name"}, {&s_acks_late, "acks_late"},
    {&s_message, "message"}, {&s_consumer_tag, "consumer_tag"}, {&s_exchange, "exchange"}, {&s_routing_key, "routing_key"},
    {&s_redelivered, "redelivered"}, {&s_retries, "retries"}, {&s_trace_message, "trace_message"},
    {&s_time_start, "time_start"}, {&s_id, "id"}, {NULL, NULL},
};

static double
now_s(void)
{
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    return (double)at.tv_sec + at.tv_nsec / 1e9;
}

/* --- counts --------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *queue;
    long long bucket_s, published, received, started, redelivered;
    double ends_s, wait_max_s, eta_max_s;
    char acks_late, dirty;
    long long waits[BUCKETS], transfers[BUCKETS], reserved[BUCKETS];
} Counts;

static int
counts_init(Counts *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"queue", "bucket_s", "lasts_s", NULL};
    PyObject *queue;
    double lasts_s;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ULd", names, &queue, &self->bucket_s, &lasts_s))
        return -1;
    Py_XSETREF(self->queue, Py_NewRef(queue));
    self->ends_s = self->bucket_s + lasts_s;
    return 0;
}

static void
counts_dealloc(Counts *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->queue);
    type->tp_free(self);
    Py_DECREF(type);
}

static void
add(long long *histogram, double duration_s)    /* Histogram.bucket() */
{
    double tenths_ms = duration_s * 10000.0;
    int exponent = 0;
    if (tenths_ms >= 1.0)
        frexp(tenths_ms, &exponent);
    histogram[exponent < BUCKETS ? exponent : BUCKETS - 1]++;
}

static void
count_received(Counts *self, double transfer_s, double eta_s)   /* NAN for unknown */
{
    self->received++;
    if (eta_s > self->eta_max_s)
        self->eta_max_s = eta_s;
    if (!isnan(transfer_s))
        add(self->transfers, transfer_s);
    self->dirty = 1;
}

static void
count_started(Counts *self, double wait_s, double reserved_s, int redelivered, int late)
{
    self->started++;
    self->redelivered += redelivered;
    self->acks_late = (char)late;
    if (!isnan(reserved_s))
        add(self->reserved, reserved_s);
    if (!isnan(wait_s) && !redelivered) {
        add(self->waits, wait_s);
        if (wait_s > self->wait_max_s)
            self->wait_max_s = wait_s;
    }
    self->dirty = 1;
}

static int
seconds_or_none(PyObject *object, void *seconds)
{
    *(double *)seconds = object == Py_None ? NAN : PyFloat_AsDouble(object);
    return !PyErr_Occurred();
}

static PyObject *
counts_publish(Counts *self, PyObject *Py_UNUSED(ignored))
{
    self->published++;
    self->dirty = 1;
    Py_RETURN_NONE;
}

static PyObject *
counts_receive(Counts *self, PyObject *args)
{
    double transfer_s, eta_s;
    if (!PyArg_ParseTuple(args, "O&d", seconds_or_none, &transfer_s, &eta_s))
        return NULL;
    count_received(self, transfer_s, eta_s);
    Py_RETURN_NONE;
}

static PyObject *
counts_start(Counts *self, PyObject *args)
{
    double wait_s, reserved_s;
    int redelivered, late;
    if (!PyArg_ParseTuple(args, "O&O&pp", seconds_or_none, &wait_s, seconds_or_none, &reserved_s, &redelivered, &late))
        return NULL;
    count_started(self, wait_s, reserved_s, redelivered, late);
    Py_RETURN_NONE;
}

static PyObject *
as_list(const long long *histogram)             /* without the zeros at its end */
{
    int used = BUCKETS;
    while (used && !histogram[used - 1])
        used--;
    PyObject *list = PyList_New(used);
    for (int i = 0; list != NULL && i < used; i++) {
        PyObject *count = PyLong_FromLongLong(histogram[i]);
        if (count == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, i, count);
    }
    return list;
}

static PyObject *
counts_histograms(Counts *self, PyObject *Py_UNUSED(ignored))
{
    return Py_BuildValue("NNN", as_list(self->waits), as_list(self->transfers), as_list(self->reserved));
}

static PyMemberDef counts_members[] = {
    {"queue", T_OBJECT, offsetof(Counts, queue), READONLY, NULL},
    {"bucket_s", T_LONGLONG, offsetof(Counts, bucket_s), READONLY, "When the period begins."},
    {"ends_s", T_DOUBLE, offsetof(Counts, ends_s), READONLY, "When it ends."},
    {"published", T_LONGLONG, offsetof(Counts, published), READONLY, NULL},
    {"received", T_LONGLONG, offsetof(Counts, received), READONLY, NULL},
    {"started", T_LONGLONG, offsetof(Counts, started), READONLY, NULL},
    {"redelivered", T_LONGLONG, offsetof(Counts, redelivered), READONLY, NULL},
    {"wait_max_s", T_DOUBLE, offsetof(Counts, wait_max_s), READONLY, NULL},
    {"eta_max_s", T_DOUBLE, offsetof(Counts, eta_max_s), READONLY, NULL},
    {"acks_late", T_BOOL, offsetof(Counts, acks_late), READONLY, NULL},
    {"dirty", T_BOOL, offsetof(Counts, dirty), 0, "Whether something was added that is not written yet."},
    {NULL},
};

static PyMethodDef counts_methods[] = {
    {"publish", (PyCFunction)counts_publish, METH_NOARGS, "A message was published."},
    {"receive", (PyCFunction)counts_receive, METH_VARARGS, "receive(transfer_s, eta_s): a message was received."},
    {"start", (PyCFunction)counts_start, METH_VARARGS, "start(wait_s, reserved_s, redelivered, late): a run has begun."},
    {"histograms", (PyCFunction)counts_histograms, METH_NOARGS, "The waits, transfers and times in the worker."},
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
    "celery_trace.runtime._messages.FlowCounts", sizeof(Counts), 0, Py_TPFLAGS_DEFAULT, counts_slots,
};

/* --- a message ------------------------------------------------------------------------------------------ */

typedef struct {
    PyObject_HEAD
    PyObject *owner;            /* a mark: without the collector, nothing here may be part of a cycle */
    PyObject *queue, *name, *waits_since_s, *retries, *request;
    Counts *counts;
    double received_s, started_s;
    char redelivered, late, written;
} Message;

static void
message_dealloc(Message *self)
{
    PyTypeObject *type = Py_TYPE(self);
    Py_XDECREF(self->owner);
    Py_XDECREF(self->queue);
    Py_XDECREF(self->name);
    Py_XDECREF(self->waits_since_s);
    Py_XDECREF(self->retries);
    Py_XDECREF(self->request);
    Py_XDECREF(self->counts);
    type->tp_free(self);
    Py_DECREF(type);
}

static PyMemberDef message_members[] = {
    {"owner", T_OBJECT, offsetof(Message, owner), 0, NULL},
    {"queue", T_OBJECT, offsetof(Message, queue), 0, NULL},
    {"name", T_OBJECT, offsetof(Message, name), 0, NULL},
    {"waits_since_s", T_OBJECT, offsetof(Message, waits_since_s), 0, NULL},
    {"retries", T_OBJECT, offsetof(Message, retries), 0, NULL},
    {"request", T_OBJECT, offsetof(Message, request), 0, NULL},
    {"received_s", T_DOUBLE, offsetof(Message, received_s), 0, NULL},
    {"started_s", T_DOUBLE, offsetof(Message, started_s), 0, NULL},
    {"redelivered", T_BOOL, offsetof(Message, redelivered), 0, NULL},
    {"late", T_BOOL, offsetof(Message, late), 0, NULL},
    {"written", T_BOOL, offsetof(Message, written), 0, NULL},
    {NULL},
};

static PyType_Slot message_slots[] = {
    {Py_tp_dealloc, message_dealloc},
    {Py_tp_members, message_members},
    {0, NULL},
};

static PyType_Spec message_spec = {
    "celery_trace.runtime._messages.Message", sizeof(Message), 0, Py_TPFLAGS_DEFAULT, message_slots,
};

/* --- the usual message ---------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    PyObject *owner;            /* the mark of its messages */
    PyObject *started, *ended;  /* dicts by the task's id */
    PyObject *routes;           /* dict: counts by consumer tag, exchange, routing key and task */
    PyObject *consumer, *tags;  /* for which the routes are right */
    PyObject *header;           /* name of the header with the time of publishing */
    double oldest_s;
    Py_ssize_t tag_count, most;
    char on;
} Quick;

static int
quick_init(Quick *self, PyObject *args, PyObject *kwargs)
{
    PyObject *owner, *started, *ended, *header;
    if (!PyArg_ParseTuple(args, "OO!O!nUd", &owner, &PyDict_Type, &started, &PyDict_Type, &ended, &self->most, &header,
                          &self->oldest_s) || (kwargs != NULL && PyDict_GET_SIZE(kwargs)))
        return -1;
    Py_XSETREF(self->owner, Py_NewRef(owner));
    Py_XSETREF(self->started, Py_NewRef(started));
    Py_XSETREF(self->ended, Py_NewRef(ended));
    Py_XSETREF(self->header, Py_NewRef(header));
    Py_XSETREF(self->routes, PyDict_New());
    return self->routes != NULL ? 0 : -1;
}

static int
quick_traverse(Quick *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE(self));
    Py_VISIT(self->owner);
    Py_VISIT(self->started);
    Py_VISIT(self->ended);
    Py_VISIT(self->routes);
    Py_VISIT(self->consumer);
    Py_VISIT(self->tags);
    return 0;
}

static int
quick_clear(Quick *self)
{
    Py_CLEAR(self->owner);
    Py_CLEAR(self->started);
    Py_CLEAR(self->ended);
    Py_CLEAR(self->routes);
    Py_CLEAR(self->consumer);
    Py_CLEAR(self->tags);
    Py_CLEAR(self->header);
    return 0;
}

static void
quick_dealloc(Quick *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    quick_clear(self);
    type->tp_free(self);
    Py_DECREF(type);
}

/* An attribute of an attribute; NULL, perhaps with an error, if there is none. */
static PyObject *
attribute_of(PyObject *object, PyObject *name, PyObject *further)
{
    PyObject *found = PyObject_GetAttr(object, name);
    PyObject *result = found != NULL ? PyObject_GetAttr(found, further) : NULL;
    Py_XDECREF(found);
    return result;
}

/* A borrowed value of a dict; None if it has none. */
static PyObject *
value_of(PyObject *dict, PyObject *key)
{
    PyObject *value = PyDict_GetItemWithError(dict, key);
    return value != NULL ? value : Py_None;
}

static int
is_now(const Counts *counts, double at_s)
{
    return counts->bucket_s <= at_s && at_s < counts->ends_s;
}

/* Remember where messages like this one are counted. */
static PyObject *
quick_learn(Quick *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 5 || !PyTuple_Check(args[3]) || !Py_IS_TYPE(args[4], counts_type)) {
        PyErr_SetString(PyExc_TypeError, "learn() takes consumer, tags, their number, route and counts");
        return NULL;
    }
    Py_ssize_t count = PyLong_AsSsize_t(args[2]);
    if (count == -1 && PyErr_Occurred())
        return NULL;
    if (self->consumer != args[0] || self->tags != args[1] || self->tag_count != count ||
        PyDict_GET_SIZE(self->routes) >= self->most)
        PyDict_Clear(self->routes);
    Py_XSETREF(self->consumer, Py_NewRef(args[0]));
    Py_XSETREF(self->tags, Py_NewRef(args[1]));
    self->tag_count = count;
    if (PyDict_SetItem(self->routes, args[3], args[4]) < 0)
        return NULL;
    Py_RETURN_NONE;
}

/* The counts for a message that came this way; a borrowed reference, or NULL. */
static Counts *
find_counts(Quick *self, PyObject *request, PyObject *info, PyObject *name, double at_s)
{
    PyObject *delivered = attribute_of(request, s_message, s_delivery_info);
    Counts *counts = NULL;
    if (delivered != NULL && PyDict_Check(delivered)) {
        PyObject *route = PyTuple_Pack(4, value_of(delivered, s_consumer_tag), value_of(info, s_exchange),
                                       value_of(info, s_routing_key), name);
        counts = route != NULL ? (Counts *)PyDict_GetItemWithError(self->routes, route) : NULL;
        Py_XDECREF(route);
    }
    Py_XDECREF(delivered);
    return counts != NULL && is_now(counts, at_s) ? counts : NULL;
}

static int
has_same_queues(Quick *self, PyObject *consumer)
{
    PyObject *tags = consumer == self->consumer ? attribute_of(consumer, s_task_consumer, s_active_tags) : NULL;
    int same = tags != NULL && tags == self->tags && PyDict_Check(tags) && PyDict_GET_SIZE(tags) == self->tag_count;
    Py_XDECREF(tags);
    return same;
}

/* What is known of a message, with a time of publishing that is a float or None. NULL if it is unusual. */
static Message *
message_of(Quick *self, PyObject *request, PyObject *headers, PyObject *info, PyObject *task, double at_s)
{
    PyObject *sent = value_of(headers, self->header), *retries = value_of(headers, s_retries);
    if (sent != Py_None && (!PyFloat_CheckExact(sent) || !(at_s - self->oldest_s < PyFloat_AS_DOUBLE(sent)) ||
                            PyFloat_AS_DOUBLE(sent) > at_s))
        return NULL;
    PyObject *name = PyObject_GetAttr(task, s_name);
    PyObject *late = name != NULL ? PyObject_GetAttr(task, s_acks_late) : NULL;
    Counts *counts = late != NULL ? find_counts(self, request, info, name, at_s) : NULL;
    Message *message = counts != NULL ? (Message *)message_type->tp_alloc(message_type, 0) : NULL;
    if (message != NULL) {
        message->owner = Py_NewRef(self->owner);
        message->queue = Py_NewRef(counts->queue);
        message->name = Py_NewRef(name);
        message->waits_since_s = Py_NewRef(sent);
        message->retries = Py_NewRef(PyLong_CheckExact(retries) ? retries : zero);
        message->counts = (Counts *)Py_NewRef(counts);
        message->received_s = at_s;
        message->late = PyObject_IsTrue(late) == 1;
        message->redelivered = PyObject_IsTrue(value_of(info, s_redelivered)) == 1 ||
                               PyObject_IsTrue(value_of(headers, s_redelivered)) == 1;
    }
    Py_XDECREF(name);
    Py_XDECREF(late);
    return message;
}

static PyObject *
quick_received(Quick *self, PyObject *const *args, Py_ssize_t count_args)
{
    if (count_args != 2) {
        PyErr_SetString(PyExc_TypeError, "received() takes a consumer and a request");
        return NULL;
    }
    PyObject *request = args[1], *headers = NULL, *info = NULL, *eta = NULL, *task = NULL;
    Message *message = NULL;
    double at_s = now_s();
    int done = 0;
    if (self->on && has_same_queues(self, args[0]) && (headers = PyObject_GetAttr(request, s_request_dict)) != NULL &&
        (info = PyObject_GetAttr(request, s_delivery_info)) != NULL && (eta = PyObject_GetAttr(request, s_eta)) == Py_None &&
        (task = PyObject_GetAttr(request, s_task)) != NULL && PyDict_Check(headers) && PyDict_Check(info))
        message = message_of(self, request, headers, info, task, at_s);
    if (message != NULL && PyObject_SetAttr(request, s_trace_message, (PyObject *)message) == 0) {
        int known = message->waits_since_s != Py_None && !message->redelivered;
        count_received(message->counts, known ? at_s - PyFloat_AS_DOUBLE(message->waits_since_s) : NAN, 0.0);
        done = 1;
    }
    Py_XDECREF(headers);
    Py_XDECREF(info);
    Py_XDECREF(eta);
    Py_XDECREF(task);
    Py_XDECREF(message);
    PyErr_Clear();                      /* Python meets it too, and reports it */
    return PyBool_FromLong(done);
}

static double
not_negative(double seconds)
{
    return seconds > 0.0 ? seconds : 0.0;
}

/* The run of a message begins: count it. False if that is left to Python. */
static int
count_start(Message *message, PyObject *request, PyObject *started)
{
    PyObject *since = message->waits_since_s, *reference = PyWeakref_NewRef(request, NULL);
    if (reference == NULL)
        return 0;
    Py_XSETREF(message->request, reference);
    message->started_s = PyFloat_AS_DOUBLE(started);
    count_started(message->counts,
                  since != Py_None ? not_negative(message->started_s - PyFloat_AS_DOUBLE(since)) : NAN,
                  not_negative(message->started_s - message->received_s), message->redelivered, message->late);
    return 1;
}

static PyObject *
quick_accepted(Quick *self, PyObject *request)
{
    PyObject *found = PyObject_GetAttr(request, s_trace_message), *eta = NULL, *started = NULL, *id = NULL;
    Message *message = (Message *)found;
    int result = IN_PYTHON;
    if (self->on && found != NULL && Py_IS_TYPE(found, message_type) && message->owner == self->owner &&
        message->counts != NULL && is_now(message->counts, now_s()) &&
        (eta = PyObject_GetAttr(request, s_eta)) == Py_None && (id = PyObject_GetAttr(request, s_id)) != NULL &&
        (started = PyObject_GetAttr(request, s_time_start)) != NULL && PyFloat_CheckExact(started) &&
        count_start(message, request, started)) {
        int is_new = !message->redelivered && PyDict_GET_SIZE(self->started) < self->most &&
                     PyDict_Contains(self->started, id) == 0 && PyDict_Contains(self->ended, id) == 0;
        result = is_new && PyDict_SetItem(self->started, id, found) == 0 ? DONE : NOTE_START;
    }
    Py_XDECREF(found);
    Py_XDECREF(eta);
    Py_XDECREF(started);
    Py_XDECREF(id);
    PyErr_Clear();
    return PyLong_FromLong(result);
}

static PyMemberDef quick_members[] = {
    {"on", T_BOOL, offsetof(Quick, on), 0, "Whether a message need not wake the ticker."},
    {NULL},
};

static PyMethodDef quick_methods[] = {
    {"learn", (PyCFunction)(void (*)(void))quick_learn, METH_FASTCALL, "learn(consumer, tags, tag_count, route, counts)"},
    {"received", (PyCFunction)(void (*)(void))quick_received, METH_FASTCALL,
     "received(consumer, request) -> whether that was all"},
    {"accepted", (PyCFunction)quick_accepted, METH_O, "accepted(request) -> IN_PYTHON, DONE or NOTE_START"},
    {NULL},
};

static PyType_Slot quick_slots[] = {
    {Py_tp_init, quick_init},
    {Py_tp_dealloc, quick_dealloc},
    {Py_tp_traverse, quick_traverse},
    {Py_tp_clear, quick_clear},
    {Py_tp_members, quick_members},
    {Py_tp_methods, quick_methods},
    {0, NULL},
};

static PyType_Spec quick_spec = {
    "celery_trace.runtime._messages.Quick", sizeof(Quick), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, quick_slots,
};

/* --- the module ----------------------------------------------------------------------------------------- */

static int
fill(PyObject *module)
{
    for (int i = 0; texts[i].at != NULL; i++)
        if (*texts[i].at == NULL && (*texts[i].at = PyUnicode_InternFromString(texts[i].text)) == NULL)
            return -1;
    if (zero == NULL && (zero = PyLong_FromLong(0)) == NULL)
        return -1;
    counts_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &counts_spec, NULL);
    message_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &message_spec, NULL);
    PyObject *quick = PyType_FromModuleAndSpec(module, &quick_spec, NULL);
    int failed = counts_type == NULL || message_type == NULL || quick == NULL ||
                 PyModule_AddObjectRef(module, "FlowCounts", (PyObject *)counts_type) < 0 ||
                 PyModule_AddObjectRef(module, "Message", (PyObject *)message_type) < 0 ||
                 PyModule_AddObjectRef(module, "Quick", quick) < 0;
    Py_XDECREF(quick);
    return failed ? -1 : 0;
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
    .m_name = "celery_trace.runtime._messages",
    .m_doc = "The messages that a worker consumes. See messages.py.",
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__messages(void)
{
    return PyModuleDef_Init(&definition);
}
