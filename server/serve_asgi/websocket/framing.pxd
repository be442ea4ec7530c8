cimport cython
from serve_asgi.websocket.compression cimport Deflate
from serve_asgi.websocket.frames cimport client_head, close_frame, control_frame, data_frame, valid_code

cdef int BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
cdef int FIN, FIN_BINARY, FIN_TEXT, MASKED, MAX_CONTROL, RSV, RSV1
cdef int PROTOCOL_ERROR, INVALID_TEXT, NO_CODE, TOO_LARGE
cdef frozenset OPCODES
cdef tuple SHORT_BINARY, SHORT_TEXT
cdef Py_ssize_t MESSAGE_COST, SINGLE
cdef object apply_mask, utf_8_decode

cpdef Py_ssize_t weigh(message) except -1
cdef Py_ssize_t _packed(Py_ssize_t size) except -1


cdef class MessageFraming:
    cdef bint _asked
    cdef bint _close_sent
    cdef bint _compressed
    cdef bint _ended
    cdef bint _fin
    cdef int _kind
    cdef Py_ssize_t _left
    cdef bytes _mask
    cdef Py_ssize_t _max_size
    cdef public bytearray _message
    cdef public bytes _rest
    cdef bint _resting
    cdef bint _stuck
    cdef bytes _tail
    cdef Py_ssize_t _wire
    cdef public bint behind
    cdef public Deflate deflate
    cdef public list pongs
    cdef public Py_ssize_t room

    @cython.locals(size=Py_ssize_t, first=int, octets="const unsigned char*", payload=bytes)
    cpdef single(self, bytes data)
    cpdef list receive(self, bytes data, Py_ssize_t room=*, bint asked=*)
    @cython.locals(position=Py_ssize_t, size=Py_ssize_t, end=Py_ssize_t, after=Py_ssize_t)
    cdef _receive(self, bytes data, list events)
    @cython.locals(
        size=Py_ssize_t, position=Py_ssize_t, room=Py_ssize_t, first=int, length=Py_ssize_t, start=Py_ssize_t,
        end=Py_ssize_t, payload=bytes, text=str, octets="const unsigned char*",
    )
    cdef Py_ssize_t _whole_messages(self, bytes data, list events) except -1
    @cython.locals(have=Py_ssize_t, first=int, second=int, opcode=int, after=Py_ssize_t, key=Py_ssize_t)
    cdef Py_ssize_t _frame(self, bytes data, Py_ssize_t start, list events) except -2
    @cython.locals(reserved=int)
    cdef _check_start(self, int first, int opcode, int second)
    @cython.locals(room=Py_ssize_t)
    cdef _check_size(self, length, bint compressed)
    cdef str _limit(self)
    @cython.locals(taken=Py_ssize_t, turn=int, last=bint, message=bytearray, text=bytes, whole=Py_ssize_t)
    cdef _content(self, bytes piece, list events)
    @cython.locals(deflate=Deflate, room=Py_ssize_t, most=Py_ssize_t)
    cdef bytes _inflate(self, bytearray message, bytes piece, bint last)
    @cython.locals(message=bytearray)
    cdef _unpack(self, list events)
    cdef _message_ends(self, bytearray message, bytes piece, list events)
    cdef _control(self, int opcode, bytes payload, list events)
    cdef _closed(self, bytes payload)
    cdef _failed(self, code, str reason)
    cdef _end(self, code, str reason, bint failed, bytes payload)
    @cython.locals(payload=bytes)
    cpdef bytes text(self, text)  # also of a subclass of str
    cpdef bytes binary(self, bytes payload)
    cdef bytes _data(self, int first, bytes payload)
