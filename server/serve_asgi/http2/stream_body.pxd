from serve_asgi.http.request_body cimport RequestBody


cdef class StreamBody(RequestBody):
    cdef Py_ssize_t _limit
    cdef Py_ssize_t _size
    cdef object _taken

    cpdef bytes feed(self, bytes data)
    cpdef end(self)
    cpdef bytes take(self)
