cdef class FloodGauge:
    cdef object _name
    cdef double _at_once
    cdef double _per_second
    cdef double _share
    cdef long long _useful
    cdef double _when
    cdef public double level

    cpdef count(self, long long useful, double now)


cdef class Floods:
    cdef object _clock
    cdef dict _gauges
    cdef public long long useful

    cpdef count(self, kind, useful=*)
