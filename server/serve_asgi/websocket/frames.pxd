cpdef bint valid_code(code) except -1
cpdef bytes data_frame(int first, bytes payload)
cpdef bytes client_head(int first, length, bytes mask)
cpdef bytes control_frame(int opcode, bytes payload)
cpdef bytes close_frame(code, reason)
