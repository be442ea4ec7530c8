cimport cython
from serve_asgi.http.request_head cimport Head

cdef int _ORDINARY, _METHOD, _SCHEME, _AUTHORITY, _PATH, _PROTOCOL, _FORBIDDEN, _COOKIE, _WATCHED, _TE, _PRIORITY
cdef dict _KINDS
cdef set _names


cpdef check_fields(list fields)
@cython.locals(pseudo=list, headers=list, watched=list, cookie=cython.Py_ssize_t, priority=bytes, te_trailers=cython.bint, kind=cython.int,
               field=tuple, head=Head, announced=cython.Py_ssize_t, method=bytes)
cpdef tuple read_request(list fields, bint ended)
@cython.locals(head=Head)
cdef Head _head(str method, bytes scheme, bytes path, bytes authority, list headers, list watched)
