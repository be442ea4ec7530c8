cimport cython
from serve_asgi.http.request_head cimport Head

cdef int _ORDINARY, _METHOD, _SCHEME, _AUTHORITY, _PATH, _PROTOCOL, _FORBIDDEN, _COOKIE, _WATCHED, _TE, _PRIORITY
cdef bint _COMPILED
cdef int _WHITE
cdef bytes _IN_VALUE, _IN_TARGET
cdef dict _KINDS
cdef set _names


@cython.locals(byte=cython.uchar)
cpdef bint consists_of(bytes text, bytes allowed) except -1
@cython.locals(name=bytes, value=bytes)
cpdef check_fields(list fields)
@cython.locals(pseudo=list, headers=list, watched=list, cookie=cython.Py_ssize_t, priority=bytes, te_trailers=cython.bint, kind=cython.int,
               field=tuple, head=Head, announced=cython.Py_ssize_t, method=bytes, scheme=bytes,
               authority=bytes, path=bytes, protocol=bytes)
cpdef tuple read_request(list fields, bint ended)
@cython.locals(head=Head)
cdef Head _head(str method, bytes scheme, bytes path, bytes authority, list headers, list watched)
