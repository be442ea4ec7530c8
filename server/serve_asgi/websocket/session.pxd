cimport cython
from serve_asgi.websocket.framing cimport MessageFraming, weigh
from serve_asgi.websocket.receive_queue cimport ReceiveQueue
from serve_asgi.websocket.write_flow cimport WriteFlow

cdef object CLOSED, DENYING, FINISHING, HANDSHAKE, OPEN, PARTING, RESUMING
cdef object BETWEEN_LIVES
cdef Py_ssize_t INCOMING_LOW


cdef class WebSocketPeer:
    cdef public object extensions
    cdef public MessageFraming framing
    cdef public ReceiveQueue messages
    cdef public object number
    cdef public WriteFlow output
    cdef public bint reading_paused
    cdef public object state
    cdef public object surviving
    cdef public object transport


cdef class WebSocketSession:
    cdef bint _connect_told
    cdef WebSocketPeer _connection
    cdef object _denial
    cdef double _dropped_since
    cdef object _handshake
    cdef object _worker
    cdef public ReceiveQueue messages
    cdef public object request
    cdef public object task

    @cython.locals(messages=ReceiveQueue, connection=WebSocketPeer)
    cpdef next_message(self)
    @cython.locals(connection=WebSocketPeer, frame=bytes)
    cpdef send(self, message, bint waited=*)
    @cython.locals(framing=MessageFraming)
    cdef bytes _data_frame(self, message, data)
