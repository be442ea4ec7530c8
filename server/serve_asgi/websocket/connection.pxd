cimport cython
from serve_asgi.websocket.framing cimport MessageFraming, weigh
from serve_asgi.websocket.keep_alive cimport KeepAlive
from serve_asgi.websocket.receive_queue cimport ReceiveQueue, wake
from serve_asgi.websocket.session cimport WebSocketPeer
from serve_asgi.websocket.write_flow cimport WriteFlow

cdef object CLOSED, CLOSING, DENYING, FINISHING, HANDSHAKE, LINGERING, OPEN, PARTED, PARTING, RESUMING
cdef Py_ssize_t INCOMING_HIGH, INCOMING_LOW


cdef class WebSocketConnection(WebSocketPeer):
    cdef public bint _accepted
    cdef object _denial
    cdef Py_ssize_t _discarded
    cdef object _end
    cdef bint _eof
    cdef public KeepAlive _keep_alive
    cdef object _planned_close
    cdef object _record
    cdef object _task
    cdef public object _worker
    cdef public double deadline
    cdef public bytes early
    cdef public object request
    cdef public bint trusted

    cpdef _write(self, bytes data)
    @cython.locals(messages=ReceiveQueue)
    cpdef data_received(self, bytes data)
    @cython.locals(framing=MessageFraming, messages=ReceiveQueue, room=Py_ssize_t, events=list, incoming=list, output=bytes, is_open=bint)
    cdef _receive_frames(self, bytes data, bint asked=*, bint answering=*)
    cpdef pause_reading(self)
    cdef _resume_reading(self)
