cimport cython

from serve_asgi.http.h2.huffman cimport decode as decode_huffman

cdef int _INDEXED, _FIRST_DYNAMIC_BYTE, _LONG_INDEX, _BYTES, _INCREMENTAL, _TABLE_SIZE, _MAX_INTEGER_SHIFT
cdef tuple _STATIC_NAMES


cdef class HeaderDecoder:
    cdef list _by_byte
    cdef list _entries
    cdef Py_ssize_t _max_size
    cdef Py_ssize_t _size
    cdef public long long changes
    cdef public Py_ssize_t largest

    @cython.locals(fields=list, literals=list, entries=list, by_byte=list, position=cython.Py_ssize_t, end=cython.Py_ssize_t,
                   updates=cython.int, first=cython.int, index=cython.Py_ssize_t, size=cython.Py_ssize_t, length=cython.Py_ssize_t, after=cython.Py_ssize_t,
                   coded=cython.int, name=bytes, value=bytes, field=tuple)
    cpdef tuple decode(self, bytes block)
    @cython.locals(name=bytes, value=bytes, length=cython.Py_ssize_t, by_byte=list)
    cdef _insert(self, tuple field)
    cdef _resize(self, Py_ssize_t size)
    @cython.locals(entries=list, gone=cython.Py_ssize_t, size=cython.Py_ssize_t, left=cython.Py_ssize_t, oldest=cython.Py_ssize_t)
    cdef _evict(self)


@cython.locals(size=cython.Py_ssize_t)
cpdef Py_ssize_t list_size(list fields, Py_ssize_t limit) except? -1
@cython.locals(value=cython.Py_ssize_t, shift=cython.int, byte=cython.int)
cpdef (Py_ssize_t, Py_ssize_t) read_integer(bytes block, Py_ssize_t position, int prefix)
@cython.locals(value=cython.Py_ssize_t)
cdef (Py_ssize_t, Py_ssize_t) _integer(bytes block, Py_ssize_t position, int first, int prefix)
@cython.locals(first=cython.int, length=cython.Py_ssize_t, end=cython.Py_ssize_t, text=bytes)
cdef tuple _string(bytes block, Py_ssize_t position)
