from serve_asgi.http.request_head cimport Head

cdef Py_ssize_t _LARGEST_HEAD
cdef Py_ssize_t _REQUESTS


cdef class BoundedCache:
    cdef public dict known
    cdef public Py_ssize_t resting
    cdef long long _asked


cdef class CachedHeadReader:
    cdef const unsigned long long[:] _cells
    cdef object _check
    cdef object _parser
    cdef BoundedCache _heads

    cpdef Head read(self, bytes data)
    cdef Head _parse(self, bytes data)
