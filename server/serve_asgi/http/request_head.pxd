cdef frozenset _WATCHED
cdef int _MAX_LENGTH_DIGITS
cdef dict _SCOPE


cdef class Head:
    cdef bint _asked
    cdef dict _scope
    cdef public str method
    cdef public bytes target
    cdef public str version
    cdef public list headers
    cdef public bytes path
    cdef public str text
    cdef public bytes query
    cdef public Py_ssize_t body
    cdef public bint keep_alive
    cdef public bint expect_continue
    cdef public bint te_trailers
    cdef public bint websocket
    cdef public bint forwarding
    cdef public object logged

    cpdef dict scope(self)


cpdef Head make_head(str method, bytes target, str version, list headers)
cdef bint _is_plain(Head head, list headers, str version) except -1
cpdef bint mentions(list headers, frozenset names) except -1
