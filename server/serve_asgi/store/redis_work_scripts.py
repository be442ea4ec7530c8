"""The scripts for work of the fleet, which Redis executes atomically; as those of `serve_asgi.store.redis_scripts`.

All keys begin with a prefix:
    PREFIX:topics          stream: the topics to which work was ever sent; field t
    PREFIX:work:TOPIC      stream: the queue of a topic, with the consumer group `GROUP`, whose consumers are servers.
                           An entry is removed when it is settled: what is in it waits, or belongs to a server.
                           Another server claims what its server has not kept for the time of a lease
    PREFIX:sizes           hash: topic -> bytes in its queue
    PREFIX:handlers:TOPIC  hash: server -> until when (µs, this Redis's clock) it handles the topic
    PREFIX:outcomes:SERVER stream: what has become of the work that this server has sent

The fields of an entry: s server that has sent it, k its key there, m id of the message, a `AckMode`, l most deliveries,
o origin, n how often it has been delivered before, b payload. What is put back is a new entry, the last one.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.ipc.work_frames import QUEUED, QUEUED_BYTES
from serve_asgi.store.redis_scripts import COMMON, NOW

GROUP: Final = "serve"
MAX_OUTCOMES: Final = 10_000
"""Most outcomes that are kept for a server that reads none."""
OUTCOMES_TIME: Final = 3_600_000
"""Milliseconds for which they are kept."""
OLD_CONSUMER: Final = 3_600_000
"""Milliseconds after which a server that has nothing is removed from a group."""

_QUEUE: Final = (
    """
local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end
local function remove(work, sizes, topic, id, fields)
  redis.call('XACK', work, 'GROUP', id)
  redis.call('XDEL', work, id)
  redis.call('HINCRBY', sizes, topic, -#field(fields, 'b'))
end
local function put_back(work, id, fields, n)
  for i = 1, #fields, 2 do
    if fields[i] == 'n' then fields[i + 1] = text(n) end
  end
  redis.call('XACK', work, 'GROUP', id)
  redis.call('XDEL', work, id)
  redis.call('XADD', work, '*', unpack(fields))
end
"""
).replace("'GROUP'", f"'{GROUP}'")

POST: Final = (
    COMMON
    + NOW
    + """
-- KEYS about, topics, work:TOPIC, handlers:TOPIC, sizes
-- ARGV epoch, topic, server, key, message, ack, limit, origin, payload
-- Returns {1, id, servers that handle it} or {0, messages that wait}
local topic, work = ARGV[2], KEYS[3]
if redis.call('EXISTS', work) == 0 then
  redis.call('XGROUP', 'CREATE', work, 'GROUP', '0', 'MKSTREAM')
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', '10000', '*', 't', topic)
end
local waiting, size = redis.call('XLEN', work), tonumber(redis.call('HGET', KEYS[5], topic) or '0')
if waiting >= MOST or (waiting > 0 and size + #ARGV[9] > BYTES) then return {0, waiting} end
local id = redis.call('XADD', work, '*', 's', ARGV[3], 'k', ARGV[4], 'm', ARGV[5], 'a', ARGV[6], 'l', ARGV[7],
  'o', ARGV[8], 'n', '0', 'b', ARGV[9])
redis.call('HINCRBY', KEYS[5], topic, #ARGV[9])
local handlers, all = 0, redis.call('HGETALL', KEYS[4])
for i = 1, #all, 2 do
  if tonumber(all[i + 1]) > now then handlers = handlers + 1 else redis.call('HDEL', KEYS[4], all[i]) end
end
return {1, id, handlers}
""".replace("'GROUP'", f"'{GROUP}'")
    .replace("MOST", str(QUEUED))
    .replace("BYTES", str(QUEUED_BYTES))
)

WITHDRAW: Final = (
    COMMON
    + _QUEUE
    + """
-- KEYS about, work:TOPIC, sizes; ARGV epoch, topic, id. Returns {1} if no server had taken it, else {0}
if redis.call('EXISTS', KEYS[2]) == 0 then return {0} end
local found = redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3])[1]
if not found or redis.call('XPENDING', KEYS[2], 'GROUP', ARGV[3], ARGV[3], 1)[1] then return {0} end
remove(KEYS[2], KEYS[3], ARGV[2], ARGV[3], found[2])
return {1}
""".replace("'GROUP'", f"'{GROUP}'")
)

SETTLE: Final = (
    COMMON
    + _QUEUE
    + """
-- KEYS about, work:TOPIC, sizes; ARGV epoch, topic, id, outcome, value, what the key of a server's outcomes begins with
-- Returns {1}, also if it is not there any more
if redis.call('EXISTS', KEYS[2]) == 0 then return {1} end
local found = redis.call('XRANGE', KEYS[2], ARGV[3], ARGV[3])[1]
if not found then return {1} end
local fields = found[2]
if ARGV[4] == 'again' then
  put_back(KEYS[2], ARGV[3], fields, ARGV[5])
  return {1}
end
if ARGV[4] ~= 'lost' and field(fields, 'a') ~= '0' then
  local outcomes = ARGV[6] .. field(fields, 's')
  redis.call('XADD', outcomes, 'MAXLEN', '~', 'MOST', '*', 'k', field(fields, 'k'), 'o', ARGV[4], 'v', ARGV[5])
  redis.call('PEXPIRE', outcomes, TIME)
end
remove(KEYS[2], KEYS[3], ARGV[2], ARGV[3], fields)
return {1}
""".replace("MOST", str(MAX_OUTCOMES)).replace("TIME", str(OUTCOMES_TIME))
)

KEEP: Final = (
    COMMON
    + NOW
    + _QUEUE
    + """
-- KEYS about, work:TOPIC, handlers:TOPIC; ARGV epoch, server, lease (ms), whether it handles the topic (0, 1), first in
-- this session (0, 1), how much it has room for, and the ids of what it holds
-- Returns {1, {id, fields, how often it has been delivered since it was put there}, ...}: what it has got from others
local work, server, lease, room, got = KEYS[2], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[6]), {1}
if redis.call('EXISTS', work) == 0 then return got end
for i = 7, #ARGV do
  local held = redis.call('XPENDING', work, 'GROUP', ARGV[i], ARGV[i], 1)[1]
  if held and held[2] == server then redis.call('XCLAIM', work, 'GROUP', server, 0, ARGV[i], 'JUSTID') end
end
if ARGV[4] == '0' then
  redis.call('HDEL', KEYS[3], server)
  return got
end
redis.call('HSET', KEYS[3], server, text(now + lease * 1000))
redis.call('PEXPIRE', KEYS[3], math.max(lease, redis.call('PTTL', KEYS[3])))
local from = '0-0'
while room > 0 do  -- what servers had taken that have not been heard of for so long
  local claimed = redis.call('XAUTOCLAIM', work, 'GROUP', server, lease, from, 'COUNT', room)
  from = claimed[1]
  for _, each in ipairs(claimed[2]) do
    if each and each[2] then
      local delivered = redis.call('XPENDING', work, 'GROUP', each[1], each[1], 1)[1]
      table.insert(got, {each[1], each[2], delivered[4]})
      room = room - 1
    end
  end
  if from == '0-0' then break end
end
if ARGV[5] == '1' then
  for _, each in ipairs(redis.call('XINFO', 'CONSUMERS', work, 'GROUP')) do
    if field(each, 'name') ~= server and field(each, 'pending') == 0
        and field(each, 'idle') > OLD then
      redis.call('XGROUP', 'DELCONSUMER', work, 'GROUP', field(each, 'name'))
    end
  end
end
return got
""".replace("'GROUP'", f"'{GROUP}'").replace("OLD", str(OLD_CONSUMER))
)
