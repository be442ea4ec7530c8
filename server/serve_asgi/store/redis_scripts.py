"""The scripts, which Redis executes atomically (Lua, https://redis.io/docs/latest/develop/programmability/eval-intro/).

Each is one decision with its effects. `WRITE` decides exactly as `serve_asgi.hub.state.write_evaluation` does; if it
refuses, it returns the present entry, and `evaluate_write` makes the sentence. Numbers in Lua are doubles: versions and
tokens stay below 2**53, and the integers of INCR are added as bytes.

All keys begin with a prefix:
    PREFIX:about     hash: format, epoch (names this life of the data), seq (version of the last change), used
                     (bytes of keys and values), token, sent (number of the last message), and the bytes in both streams
    PREFIX:state     hash: key -> VERSION:VALUE
    PREFIX:log       stream: the latest changes; the id of an entry is VERSION-0
    PREFIX:messages  stream: the latest messages; the id of an entry is NUMBER-0
    PREFIX:ticks     hash: name of a schedule -> TOKEN TICK HOLDER of its last grant
    PREFIX:lease:NAME  hash: token -> until when (µs, this Redis's clock)
and those of `serve_asgi.store.redis_fleet_scripts` and `serve_asgi.store.redis_work_scripts`.
"""

from __future__ import annotations

from typing import Final

from serve_asgi.hub.state.write_evaluation import OVERHEAD
from serve_asgi.ipc.state_frames import MAX_KEY
from serve_asgi.store.schedule_leases import MAX_AHEAD

FORMAT: Final = 1
LOG_BYTES: Final = 16 * 1024 * 1024
MESSAGE_BYTES: Final = 64 * 1024 * 1024
"""Most bytes in the streams: a server that lags further behind reads the whole state anew, and misses messages."""

COMMON: Final = """
local about = KEYS[1]
local function text(n) return string.format('%.0f', n) end
local function get(field) return tonumber(redis.call('HGET', about, field) or '0') end
local function length(fields)
  local n = 64
  for _, each in ipairs(fields) do n = n + #each end
  return n
end
local function append(stream, counter, most, n, fields)
  redis.call('XADD', stream, text(n) .. '-0', unpack(fields))
  local bytes = redis.call('HINCRBY', about, counter, length(fields))
  while bytes > most do
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    if not first or first[1] == text(n) .. '-0' then break end
    redis.call('XDEL', stream, first[1])
    bytes = redis.call('HINCRBY', about, counter, -length(first[2]))
  end
end
if redis.call('HGET', about, 'epoch') ~= ARGV[1] then return {-1} end
"""

HELLO: Final = """
-- KEYS about, state, log, messages; ARGV the epoch to begin if there is none, the largest version that was ever seen,
-- whether the asker has entries (0, 1), and then, asked again, key, VERSION:VALUE, ... to begin with.
-- Returns {format} if it is another one, {''} if the entries are wanted, or {epoch, seq before, whether it began}.
-- Data in which nothing was ever written begin anew when somebody has entries: another server came first, knowing none.
local about = KEYS[1]
local format = redis.call('HGET', about, 'format')
if format and format ~= 'FORMAT' then return {format} end
local empty = not format or redis.call('HGET', about, 'seq') == '0'
if empty and ARGV[3] == '1' and #ARGV == 3 then return {''} end
redis.call('HSETNX', about, 'format', 'FORMAT')  -- a replica says no
local began = 0
if not format or empty and #ARGV > 3 then
  began = 1
  redis.call('HSET', about, 'epoch', ARGV[1])
  redis.call('DEL', KEYS[3], KEYS[4])
  for i = 4, #ARGV, 2 do redis.call('HSETNX', KEYS[2], ARGV[i], ARGV[i + 1]) end
  local used, seq, all = 0, 0, redis.call('HGETALL', KEYS[2])
  for i = 1, #all, 2 do
    local colon = string.find(all[i + 1], ':', 1, true)
    seq = math.max(seq, tonumber(string.sub(all[i + 1], 1, colon - 1)))
    used = used + #all[i] + #all[i + 1] - colon
  end
  redis.call('HSET', about, 'seq', string.format('%.0f', seq), 'used', used)
end
local seq = redis.call('HGET', about, 'seq')
if tonumber(seq) < tonumber(ARGV[2]) then redis.call('HSET', about, 'seq', ARGV[2]) end
return {redis.call('HGET', about, 'epoch'), seq, began}
""".replace("FORMAT", str(FORMAT))

SNAPSHOT: Final = (
    COMMON
    + """
-- KEYS about, state; ARGV epoch. Returns {seq, sent, key, VERSION:VALUE, ...}
local found = redis.call('HGETALL', KEYS[2])
table.insert(found, 1, redis.call('HGET', about, 'sent') or '0')
table.insert(found, 1, redis.call('HGET', about, 'seq'))
return found
"""
)

_ENTRY: Final = """
local function entry(key)
  local found = redis.call('HGET', KEYS[2], key)
  if not found then return 0, nil end
  local colon = string.find(found, ':', 1, true)
  return tonumber(string.sub(found, 1, colon - 1)), string.sub(found, colon + 1)
end
"""

READ: Final = (
    COMMON
    + _ENTRY
    + """
-- KEYS about, state; ARGV epoch, key. Returns {seq, version, value or false}
local version, value = entry(ARGV[2])
return {get('seq'), version, value or false}
"""
)

WRITE: Final = (
    COMMON
    + _ENTRY
    + """
-- KEYS about, state, log; ARGV epoch, origin, op, key, version or '', value (of incr: the step), both limits.
-- Returns {1, version, value or false} or {0, seq, used, version, value or false}
local widths = {[204] = 1, [205] = 2, [206] = 4, [207] = 8, [208] = 1, [209] = 2, [210] = 4, [211] = 8}
local function number(packed)  -- a MessagePack integer as 9 bytes, two's complement
  local first, digits, signed = string.byte(packed), nil, false
  if #packed == 1 and (first <= 127 or first >= 224) then
    digits, signed = packed, first >= 224
  elseif first and widths[first] and #packed == widths[first] + 1 then
    digits = string.sub(packed, 2)
    signed = first >= 208 and string.byte(digits) >= 128
  else
    return nil
  end
  local found, fill = {}, signed and 255 or 0
  for i = 1, 9 - #digits do found[i] = fill end
  for i = 1, #digits do found[9 - #digits + i] = string.byte(digits, i) end
  return found
end
local function added(a, b)  -- nil beyond 64 bits
  local sum, carry = {}, 0
  for i = 9, 1, -1 do
    local n = a[i] + b[i] + carry
    sum[i], carry = n % 256, n >= 256 and 1 or 0
  end
  if sum[1] ~= (sum[2] >= 128 and 255 or 0) then return nil end
  return sum
end
local function encoded(n)  -- the shortest form, as msgpack-python has it
  local fill = n[1]
  local from = 2
  while from < 9 and n[from] == fill do from = from + 1 end
  local bytes
  if fill == 0 then
    if from == 9 and n[9] <= 127 then return string.char(n[9]) end
    bytes = 10 - from
  else
    if from == 9 and n[9] >= 224 then return string.char(n[9]) end
    bytes = 10 - from
    if n[from] < 128 then bytes = bytes + 1 end
  end
  local log = bytes == 1 and 0 or bytes == 2 and 1 or bytes <= 4 and 2 or 3
  local out = string.char((fill == 0 and 204 or 208) + log)
  for i = 10 - 2 ^ log, 9 do out = out .. string.char(n[i]) end
  return out
end

local origin, op, key = ARGV[2], ARGV[3], ARGV[4]
local version, value = entry(key)
local used = get('used') + %(overhead)d * redis.call('HLEN', KEYS[2])
local function refused() return {0, get('seq'), used, version, value or false} end
if #key == 0 or #key > %(key)d then return refused() end
if ARGV[5] ~= '' and tonumber(ARGV[5]) ~= version then return refused() end
local before = value and #key + #value or 0
local after = ARGV[6]
if op == 'delete' then
  if not value then return refused() end
  after = nil
elseif op == 'incr' then
  local now = number(value or '\\0')
  local sum = now and added(now, number(after))
  if not sum then return refused() end
  after = encoded(sum)
end
local grows = (after and #key + #after or 0) - before
local counts = grows + (value and 0 or %(overhead)d)  -- PREFIX:about has it without
if after and (#after > tonumber(ARGV[7]) or counts > 0 and used + counts > tonumber(ARGV[8])) then return refused() end

local seq = redis.call('HINCRBY', about, 'seq', 1)
redis.call('HINCRBY', about, 'used', grows)
if after then
  redis.call('HSET', KEYS[2], key, text(seq) .. ':' .. after)
  append(KEYS[3], 'log', %(bytes)d, seq, {'o', origin, 'k', key, 'v', after})
else
  redis.call('HDEL', KEYS[2], key)
  append(KEYS[3], 'log', %(bytes)d, seq, {'o', origin, 'k', key})
end
return {1, seq, after or false}
""".replace("%(key)d", str(MAX_KEY))
    .replace("%(bytes)d", str(LOG_BYTES))
    .replace("%(overhead)d", str(OVERHEAD))
)

SEND: Final = (
    COMMON
    + f"""
-- KEYS about, messages; ARGV epoch, origin, head, body. Returns {{1}}
local n = redis.call('HINCRBY', about, 'sent', 1)
append(KEYS[2], 'messages', {MESSAGE_BYTES}, n, {{'o', ARGV[2], 'h', ARGV[3], 'b', ARGV[4], 'e', ARGV[1]}})
return {{1}}
"""
)

NOW: Final = """
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
"""

GRANT: Final = (
    COMMON
    + NOW
    + """
-- KEYS about, ticks, lease:NAME; ARGV epoch, name, tick, holder, lease (µs), exclusive (0, 1).
-- Returns {1, token} or {0, 'granted' | 'running' | 'clock', seconds}
local name, tick, holder, exclusive = ARGV[2], tonumber(ARGV[3]), ARGV[4], ARGV[6] == '1'
local until_ = now + tonumber(ARGV[5])
local function lease(token)
  redis.call('HSET', KEYS[3], token, text(until_))
  redis.call('PEXPIRE', KEYS[3], math.ceil(math.max(tonumber(ARGV[5]) / 1000, redis.call('PTTL', KEYS[3]))))
  return {1, tonumber(token)}
end
local last = redis.call('HGET', KEYS[2], name)
if last then
  local token, before, by = string.match(last, '^(%d+) (%S+) (.*)$')
  if tick <= tonumber(before) then
    if tick == tonumber(before) and holder == by then return lease(token) end
    return {0, 'granted', '0'}
  end
end
if tick * 1000000 > now + AHEAD * 1000000 then return {0, 'clock', text(tick - now / 1000000)} end
if exclusive then
  local all = redis.call('HGETALL', KEYS[3])
  for i = 1, #all, 2 do
    if tonumber(all[i + 1]) > now then return {0, 'running', '0'} end
  end
end
local token = text(math.max(get('token') + 1, now))
redis.call('HSET', about, 'token', token)
redis.call('HSET', KEYS[2], name, token .. ' ' .. ARGV[3] .. ' ' .. holder)
return lease(token)
""".replace("AHEAD", f"{MAX_AHEAD:.0f}")
)

RENEW: Final = (
    COMMON
    + NOW
    + """
-- KEYS about, lease:NAME; ARGV epoch, token, lease (µs). Returns {1} or {0}
local there = redis.call('HGET', KEYS[2], ARGV[2])
if not there or tonumber(there) <= now then
  redis.call('HDEL', KEYS[2], ARGV[2])
  return {0}
end
redis.call('HSET', KEYS[2], ARGV[2], text(now + tonumber(ARGV[3])))
redis.call('PEXPIRE', KEYS[2], math.ceil(math.max(tonumber(ARGV[3]) / 1000, redis.call('PTTL', KEYS[2]))))
return {1}
"""
)

RELEASE: Final = (
    COMMON
    + """
-- KEYS about, lease:NAME; ARGV epoch, token. Returns {1}
redis.call('HDEL', KEYS[2], ARGV[2])
return {1}
"""
)
