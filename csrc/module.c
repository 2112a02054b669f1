/* module.c: the kernels as the Python module quantkit._native. Buffers in, the GIL released, codes to exceptions.
 *
 * Shapes and types are checked by quantkit.kernels; what is refused here would be a bug of ours, so it is a ValueError.
 */
#define Py_LIMITED_API 0x030b0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "quantkit.h"

static PyObject *refuse(qk_status status) {
    static const char *const reason[] = {"", "unknown type", "bad shape", "unfit value", "unknown instruction set"};
    return PyErr_Format(PyExc_ValueError, "%s", reason[-(int)status]);
}

/* Whether the two buffers hold n_rows x n_columns floats and their blocks; sets an exception if not. */
static int sizes_fit(int type, long long n_rows, long long n_columns, const Py_buffer *rows, const Py_buffer *blocks) {
    const int64_t row_bytes = qk_row_bytes((qk_type)type, n_columns);
    if (row_bytes < 0) {
        refuse((qk_status)row_bytes);
        return 0;
    }
    if (n_rows < 0 || rows->len / 4 != n_rows * n_columns || blocks->len != n_rows * row_bytes) {
        PyErr_SetString(PyExc_ValueError, "a buffer does not have the size of its shape");
        return 0;
    }
    return 1;
}

static PyObject *encode(PyObject *self, PyObject *args) {
    (void)self;
    int type;
    long long n_rows, n_columns;
    float limit;
    Py_buffer rows, importance, blocks; /* importance.buf is NULL for None */
    if (!PyArg_ParseTuple(args, "iy*LLz*fw*", &type, &rows, &n_rows, &n_columns, &importance, &limit, &blocks))
        return NULL;
    PyObject *result = NULL;
    if (importance.buf != NULL && importance.len / 4 != n_columns) {
        PyErr_SetString(PyExc_ValueError, "importance does not have the size of a row");
    } else if (sizes_fit(type, n_rows, n_columns, &rows, &blocks)) {
        qk_status status;
        int64_t unfit = -1;
        Py_BEGIN_ALLOW_THREADS
        status = qk_encode((qk_type)type, rows.buf, n_rows, n_columns, importance.buf, limit, blocks.buf, &unfit);
        Py_END_ALLOW_THREADS
        result = status == QK_OK || status == QK_UNFIT ? PyLong_FromLongLong(unfit) : refuse(status);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&importance);
    PyBuffer_Release(&blocks);
    return result;
}

static PyObject *encode_feedback(PyObject *self, PyObject *args) {
    (void)self;
    int type;
    long long n_rows, n_columns;
    float limit;
    Py_buffer rows, order, factor, importance, errors, blocks;
    if (!PyArg_ParseTuple(args, "iy*LLy*y*y*fw*w*", &type, &rows, &n_rows, &n_columns, &order, &factor, &importance,
                          &limit, &errors, &blocks))
        return NULL;
    PyObject *result = NULL;
    if (order.len != n_columns || factor.len / 4 != n_columns * n_columns || importance.len / 4 != n_columns ||
        errors.len != rows.len) {
        PyErr_SetString(PyExc_ValueError, "a buffer does not have the size of its shape");
    } else if (sizes_fit(type, n_rows, n_columns, &rows, &blocks)) {
        qk_status status;
        int64_t unfit = -1;
        Py_BEGIN_ALLOW_THREADS
        status = qk_encode_feedback((qk_type)type, rows.buf, n_rows, n_columns, order.buf, factor.buf, importance.buf,
                                    limit, errors.buf, blocks.buf, &unfit);
        Py_END_ALLOW_THREADS
        result = status == QK_OK || status == QK_UNFIT ? PyLong_FromLongLong(unfit) : refuse(status);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&order);
    PyBuffer_Release(&factor);
    PyBuffer_Release(&importance);
    PyBuffer_Release(&errors);
    PyBuffer_Release(&blocks);
    return result;
}

static PyObject *factor(PyObject *self, PyObject *args) {
    (void)self;
    long long n, first, row, n_rows;
    float least;
    Py_buffer matrix;
    if (!PyArg_ParseTuple(args, "w*LLLLf", &matrix, &n, &first, &row, &n_rows, &least)) return NULL;
    PyObject *result = NULL;
    if (n < 0 || matrix.len / 4 != n * n) {
        PyErr_SetString(PyExc_ValueError, "a buffer does not have the size of its shape");
    } else {
        qk_status status;
        int64_t column = -1;
        Py_BEGIN_ALLOW_THREADS
        status = qk_factor(matrix.buf, n, first, row, n_rows, least, &column);
        Py_END_ALLOW_THREADS
        result = status == QK_OK || status == QK_UNFIT ? PyLong_FromLongLong(column) : refuse(status);
    }
    PyBuffer_Release(&matrix);
    return result;
}

static PyObject *decode(PyObject *self, PyObject *args) {
    (void)self;
    int type;
    long long n_rows, n_columns;
    Py_buffer rows, blocks;
    if (!PyArg_ParseTuple(args, "iy*LLw*", &type, &blocks, &n_rows, &n_columns, &rows)) return NULL;
    PyObject *result = NULL;
    if (sizes_fit(type, n_rows, n_columns, &rows, &blocks)) {
        qk_status status;
        Py_BEGIN_ALLOW_THREADS
        status = qk_decode((qk_type)type, blocks.buf, n_rows, n_columns, rows.buf);
        Py_END_ALLOW_THREADS
        result = status == QK_OK ? Py_NewRef(Py_None) : refuse(status);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&blocks);
    return result;
}

static PyObject *add_low_rank(PyObject *self, PyObject *args) {
    (void)self;
    long long n_rows, n_columns, rank;
    float scale;
    Py_buffer rows, coefficients, basis;
    if (!PyArg_ParseTuple(args, "w*LLy*y*Lf", &rows, &n_rows, &n_columns, &coefficients, &basis, &rank, &scale))
        return NULL;
    PyObject *result = NULL;
    if (rows.len / 4 != n_rows * n_columns || coefficients.len / 4 != n_rows * rank ||
        basis.len / 4 != rank * n_columns) {
        PyErr_SetString(PyExc_ValueError, "a buffer does not have the size of its shape");
    } else {
        qk_status status;
        Py_BEGIN_ALLOW_THREADS
        status = qk_add_low_rank(rows.buf, n_rows, n_columns, coefficients.buf, basis.buf, rank, scale);
        Py_END_ALLOW_THREADS
        result = status == QK_OK ? Py_NewRef(Py_None) : refuse(status);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&coefficients);
    PyBuffer_Release(&basis);
    return result;
}

static PyObject *row_norms(PyObject *self, PyObject *args) {
    (void)self;
    long long n_rows, n_columns;
    Py_buffer rows, norms;
    if (!PyArg_ParseTuple(args, "y*LLw*", &rows, &n_rows, &n_columns, &norms)) return NULL;
    PyObject *result = NULL;
    if (rows.len / 4 != n_rows * n_columns || norms.len / 4 != n_rows) {
        PyErr_SetString(PyExc_ValueError, "a buffer does not have the size of its shape");
    } else {
        qk_status status;
        Py_BEGIN_ALLOW_THREADS
        status = qk_row_norms(rows.buf, n_rows, n_columns, norms.buf);
        Py_END_ALLOW_THREADS
        result = status == QK_OK ? Py_NewRef(Py_None) : refuse(status);
    }
    PyBuffer_Release(&rows);
    PyBuffer_Release(&norms);
    return result;
}

static PyObject *use(PyObject *self, PyObject *args) {
    (void)self;
    const char *name;
    if (!PyArg_ParseTuple(args, "z", &name)) return NULL;
    const qk_status status = qk_use(name);
    return status == QK_OK ? Py_NewRef(Py_None) : refuse(status);
}

static PyObject *isa(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    return PyUnicode_FromString(qk_isa());
}

static PyObject *isas(PyObject *self, PyObject *args) {
    (void)self, (void)args;
    PyObject *names = PyTuple_New(qk_n_isas());
    for (int i = 0; names != NULL && i < qk_n_isas(); i++) {
        PyObject *name = PyUnicode_FromString(qk_isa_name(i));
        if (name == NULL || PyTuple_SetItem(names, i, name) != 0) Py_CLEAR(names);
    }
    return names;
}

static PyMethodDef methods[] = {
    {"encode", encode, METH_VARARGS,
     "encode(type, rows, n_rows, n_columns, importance, limit, blocks): pack; the flat index of the first unfit value, "
     "or -1"},
    {"encode_feedback", encode_feedback, METH_VARARGS,
     "encode_feedback(type, rows, n_rows, n_columns, order, factor, importance, limit, errors, blocks): pack with "
     "error "
     "feedback; the flat index of the first unfit corrected value, or -1"},
    {"factor", factor, METH_VARARGS,
     "factor(matrix, n, first, row, n_rows, least): a step of H = G G^T; the column of a pivot not above least, or -1"},
    {"decode", decode, METH_VARARGS, "decode(type, blocks, n_rows, n_columns, rows): unpack"},
    {"add_low_rank", add_low_rank, METH_VARARGS,
     "add_low_rank(rows, n_rows, n_columns, coefficients, basis, rank, scale): rows += scale * (coefficients x basis)"},
    {"row_norms", row_norms, METH_VARARGS, "row_norms(rows, n_rows, n_columns, norms): the norm of each row"},
    {"use", use, METH_VARARGS, "use(name): choose the instruction set, None for the fastest"},
    {"isa", isa, METH_NOARGS, "isa(): the instruction set in use"},
    {"isas", isas, METH_NOARGS, "isas(): those this processor can run, slowest first"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "The C kernels.", 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__native(void) { return PyModule_Create(&definition); }
