cpdef bytes decode(bytes data)
cpdef bytes encode(bytes text)
