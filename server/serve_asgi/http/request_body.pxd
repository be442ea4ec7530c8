from serve_asgi.http.request_head cimport Head


cdef class RequestBody:
    cdef public object _chunks
    cdef public list _pieces
    cdef public Py_ssize_t arrived
    cdef public bint awaits_continue
    cdef public Py_ssize_t left
    cdef public bint may_continue
    cdef public Py_ssize_t unread
    cdef public bint whole

    cpdef bytes feed(self, bytes data)
    cpdef _push(self, bytes data)
    cpdef bytes take(self)
