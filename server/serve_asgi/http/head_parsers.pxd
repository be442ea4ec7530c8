from serve_asgi.http.request_head cimport Head, make_head

cdef dict _LOWER
cdef int _SPACE


cdef class HttptoolsParser:
    cdef object _httptools
    cdef list _headers
    cdef bytes _url
    cdef object _parser

    cpdef on_header(self, bytes name, bytes value)
    cpdef Head parse_head(self, bytes data)


cdef class H11Parser:
    cdef public object _h11

    cpdef Head parse_head(self, bytes data)
