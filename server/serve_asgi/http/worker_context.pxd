from serve_asgi.http.head_cache cimport BoundedCache, CachedHeadReader
from serve_asgi.http.request_head cimport Head, mentions
from serve_asgi.http.write_batching cimport WriteBatch
from serve_asgi.logs.request_ids cimport RequestIds



cdef class WorkerContext:
    cdef bint _announce_close
    cdef bytes _default_headers
    cdef public object access_log
    cdef public object app
    cdef public object catch_up
    cdef public unsigned long long[:] cells
    cdef public object config
    cdef public object connections
    cdef public object context
    cdef public object dropped_bodies
    cdef public list durations
    cdef public bint early_hints
    cdef public object emptied
    cdef public BoundedCache encoded_headers
    cdef public object forwarding
    cdef public bint gathers_writes
    cdef public object generation
    cdef public object hand_over
    cdef public CachedHeadReader heads
    cdef public bytes health_path
    cdef public double keep_alive
    cdef public bytes keep_alive_lines
    cdef public bint last_call
    cdef public set lent
    cdef public object loop
    cdef public Py_ssize_t max_concurrency
    cdef public Py_ssize_t max_head_size
    cdef public double most_linger
    cdef public object new_parser
    cdef public object not_survived
    cdef public dict numbered
    cdef public long long numbers
    cdef public bytes persistent
    cdef public object phase
    cdef public const unsigned long long[:] published
    cdef public bytes raw_root_path
    cdef public long long received
    cdef public RequestIds request_ids
    cdef public double retire_deadline
    cdef public object retiring
    cdef public str root_path
    cdef public object scoreboard
    cdef public long long sent
    cdef public object shared
    cdef public object slot
    cdef public dict state
    cdef public object tasks
    cdef public object time
    cdef public object tls_at_plain_address
    cdef public Py_ssize_t to_lend
    cdef public double took
    cdef public WriteBatch write_batch

    cpdef check_head(self, Head head)
