/*
 * What a thread of this process does at this moment, as the kernel shows it: it runs, or waits for the GIL, for a lock,
 * or for anything else; the kernel's number of a thread; the local variables of a function that runs.
 *
 * A thread that waits for the GIL and one that waits for a lock are in the same system call (futex). They differ in
 * the address, and only CPython's internal headers say where the GIL is. The file is read with the GIL held, so that
 * the thread does not go on in between; the kernel answers in about three microseconds, without waiting.
 */
#define PY_SSIZE_T_CLEAN
#define Py_BUILD_CORE_MODULE 1  /* for the GIL's address */
#include <Python.h>

#ifdef Py_GIL_DISABLED
#error "This relies on the GIL"
#endif
#if PY_VERSION_HEX < 0x030B0000 || PY_VERSION_HEX >= 0x03100000
#error "This knows the GIL of CPython 3.11 to 3.15"
#endif

#include <internal/pycore_gil.h>
#include <internal/pycore_interp.h>
#include <internal/pycore_runtime.h>
#if PY_VERSION_HEX < 0x030D0000
#include <internal/pycore_code.h>
#include <internal/pycore_frame.h>
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* thread_state.py has the same. */
enum { UNKNOWN = 0, RUNS = 1, WAITS_FOR_GIL = 2, WAITS_FOR_LOCK = 3, WAITS = 4 };

static int
is_gil(uintptr_t address)
{
#if PY_VERSION_HEX < 0x030C0000
    const struct _gil_runtime_state *gil = &_PyRuntime.ceval.gil;
#else
    const struct _gil_runtime_state *gil = PyInterpreterState_Get()->ceval.gil;
#endif
    return gil != NULL && address >= (uintptr_t)gil && address < (uintptr_t)gil + sizeof *gil;
}

static int
state_of(long thread)
{
    char path[64], text[128];
    snprintf(path, sizeof path, "/proc/self/task/%ld/syscall", thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return UNKNOWN;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return UNKNOWN;
    text[length] = 0;
    if (!strncmp(text, "running", 7))
        return RUNS;
    char *rest;
    long number = strtol(text, &rest, 10);
    if (rest == text)
        return UNKNOWN;
    if (number < 0)             /* blocked outside of a system call, as by a page fault */
        return WAITS;
    int is_futex = number == SYS_futex;
#ifdef SYS_futex_time64
    is_futex = is_futex || number == SYS_futex_time64;
#endif
    if (!is_futex)
        return WAITS;
    return is_gil((uintptr_t)strtoull(rest, NULL, 16)) ? WAITS_FOR_GIL : WAITS_FOR_LOCK;
}

static PyObject *
thread_state(PyObject *Py_UNUSED(module), PyObject *argument)
{
    long thread = PyLong_AsLong(argument);
    if (thread == -1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromLong(state_of(thread));
}

/*
 * The kernel's number of a living thread; 0 if it has ended. A thread gives up its state with the GIL held, so none can
 * end in here. pthread_getcpuclockid() reads freed memory if the thread has ended.
 */
static PyObject *
native_id(PyObject *Py_UNUSED(module), PyObject *argument)
{
    unsigned long thread = PyLong_AsUnsignedLong(argument);
    if (thread == (unsigned long)-1 && PyErr_Occurred())
        return NULL;
    PyThreadState *state = PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    while (state != NULL && state->thread_id != thread)
        state = PyThreadState_Next(state);
    return PyLong_FromUnsignedLong(state != NULL ? state->native_thread_id : 0);
}

#if PY_VERSION_HEX < 0x030D0000
/*
 * A new dict of a function's local variables. f_locals would change the dict that the function itself may have from
 * locals(), and keep its values alive.
 */
static PyObject *
copy_locals(PyObject *Py_UNUSED(module), PyObject *argument)
{
    if (!PyFrame_Check(argument)) {
        PyErr_SetString(PyExc_TypeError, "copy_locals() takes a frame");
        return NULL;
    }
    PyObject *copy = PyDict_New();
    struct _PyInterpreterFrame *frame = ((PyFrameObject *)argument)->f_frame;
    PyCodeObject *code = frame->f_code;
    for (int i = 0; copy != NULL && i < code->co_nlocalsplus; i++) {
        PyObject *value = frame->localsplus[i];
        _PyLocals_Kind kind = _PyLocals_GetKind(code->co_localspluskinds, i);
#ifdef CO_FAST_HIDDEN
        if (kind & CO_FAST_HIDDEN)
            continue;
#endif
        if (value != NULL && kind & (CO_FAST_CELL | CO_FAST_FREE) && PyCell_Check(value))
            value = PyCell_GET(value);
        if (value == NULL)
            continue;
        Py_INCREF(value);       /* making room may collect garbage, and so run other code */
        if (PyDict_SetItem(copy, PyTuple_GET_ITEM(code->co_localsplusnames, i), value) < 0)
            Py_CLEAR(copy);
        Py_DECREF(value);
    }
    return copy;
}
#endif

static PyMethodDef methods[] = {
    {"native_id", native_id, METH_O, "native_id(thread) -> int: the kernel's number of a thread; 0 if it has ended."},
#if PY_VERSION_HEX < 0x030D0000
    {"copy_locals", copy_locals, METH_O, "copy_locals(frame) -> dict: its local variables; see frame_locals.py."},
#endif
    {"thread_state", thread_state, METH_O, "thread_state(native_id) -> int: what the thread does; see thread_state.py."},
    {NULL},
};

static PyModuleDef_Slot slots[] = {
#if PY_VERSION_HEX >= 0x030C0000
    {Py_mod_multiple_interpreters, Py_MOD_MULTIPLE_INTERPRETERS_NOT_SUPPORTED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "celery_trace.process._thread_state",
    .m_doc = "What a thread of this process does. See thread_state.py.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__thread_state(void)
{
    return PyModuleDef_Init(&definition);
}
