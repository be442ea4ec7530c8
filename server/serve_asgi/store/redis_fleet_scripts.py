"""The scripts for the fleet, which Redis executes atomically: announcements of servers, and orders for them.

They keep to what `serve_asgi.store.redis_scripts` says. Keys:
    PREFIX:fleet            hash: name of a server -> what it announces (`serve_asgi.ipc.fleet_records`)
    PREFIX:fleet:heard      sorted set: name of a server, by when it was last heard (µs, this Redis's clock)
    PREFIX:fleet:orders     hash: name of a server -> an order that it has not taken
    PREFIX:fleet:operation  hash: version, document: the latest operation of `serve fleet`
    PREFIX:fleet:bell:NAME  stream: an entry wakes that server, for an order
"""

from __future__ import annotations

from typing import Final

from serve_asgi.ipc.fleet_records import FORGET
from serve_asgi.store.redis_scripts import COMMON, NOW

_BELL: Final = 60
"""Seconds after which a bell that nobody has heard is gone."""

ANNOUNCE: Final = (
    COMMON
    + NOW
    + """
-- KEYS about, fleet, fleet:heard, fleet:orders; ARGV epoch, name, record. Returns {1, order or false}: taken with this
local name = ARGV[2]
redis.call('HSET', KEYS[2], name, ARGV[3])
redis.call('ZADD', KEYS[3], text(now), name)
for _, each in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', text(now - FORGET), 'LIMIT', 0, 10)) do
  redis.call('HDEL', KEYS[2], each)
  redis.call('HDEL', KEYS[4], each)
  redis.call('ZREM', KEYS[3], each)
end
local order = redis.call('HGET', KEYS[4], name)
if order then redis.call('HDEL', KEYS[4], name) end
return {1, order or false}
""".replace("FORGET", f"{FORGET * 1e6:.0f}")
)

LEAVE: Final = (
    COMMON
    + """
-- KEYS about, fleet, fleet:heard, fleet:orders; ARGV epoch, name. Returns {1}
redis.call('HDEL', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('HDEL', KEYS[4], ARGV[2])
return {1}
"""
)

FLEET: Final = (
    NOW
    + """
-- KEYS fleet, fleet:heard, fleet:orders, fleet:operation; ARGV name of the one server that is asked for, or ''.
-- Returns {now, version or false, document or false, name, record, heard, whether an order waits, ...}
local found = redis.call('HMGET', KEYS[4], 'version', 'document')
local said = {string.format('%.0f', now), found[1], found[2]}
local names = ARGV[1] == '' and redis.call('HKEYS', KEYS[1]) or {ARGV[1]}
for _, name in ipairs(names) do
  local record, heard = redis.call('HGET', KEYS[1], name), redis.call('ZSCORE', KEYS[2], name)
  if record and heard then
    for _, each in ipairs({name, record, heard, redis.call('HEXISTS', KEYS[3], name)}) do said[#said + 1] = each end
  end
end
return said
"""
)

ADVANCE: Final = """
-- KEYS fleet:operation, fleet, fleet:orders, fleet:bell:NAME; ARGV version before, document, name or '', order or ''.
-- Returns 1 if it is done, 0 if somebody else has written another version
if (redis.call('HGET', KEYS[1], 'version') or '0') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', string.format('%.0f', tonumber(ARGV[1]) + 1), 'document', ARGV[2])
if ARGV[3] ~= '' and ARGV[4] == '' then
  redis.call('HDEL', KEYS[3], ARGV[3])
elseif ARGV[3] ~= '' and redis.call('HEXISTS', KEYS[2], ARGV[3]) == 1 then
  redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
  redis.call('XADD', KEYS[4], 'MAXLEN', 1, '*', 'o', '')
  redis.call('EXPIRE', KEYS[4], BELL)
end
return 1
""".replace("BELL", str(_BELL))

SCRIPTS: Final = {"ANNOUNCE": ANNOUNCE, "LEAVE": LEAVE}
"""Those that a server runs; the others are run by `serve fleet`."""
