-- Removes entries from the start of a stream as its retention says.
--
-- KEYS: the stream, the hash of losses
-- ARGV: the oldest id by age or "", the most entries or "", whether what all
--       groups acknowledged goes, whether what some group did not may go ("1")
-- Returns: how many entries were removed, how many of them some group had yet
--          to be given, summed over the groups, whether there may be more
local stream, losses = KEYS[1], KEYS[2]
local age, most, acknowledged, force = ARGV[1], ARGV[2], ARGV[3] == '1', ARGV[4] == '1'

local function parts(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end
local function before(a, b)
  local ams, aseq = parts(a)
  local bms, bseq = parts(b)
  return ams < bms or ams == bms and aseq < bseq
end
local function after(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq == '18446744073709551615' then
    return string.format('%.0f-0', tonumber(ms) + 1)
  end
  return string.format('%s-%.0f', ms, tonumber(seq) + 1)
end

local function previous(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  if seq == '0' then
    return string.format('%.0f-18446744073709551615', tonumber(ms) - 1)
  end
  return string.format('%s-%.0f', ms, tonumber(seq) - 1)
end

if redis.call('EXISTS', stream) == 0 then
  return {0, 0, 0}
end

-- What every group is done with lies before the mark.
local mark
local groups = {}
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local g = {}
  for i = 1, #info, 2 do
    g[info[i]] = info[i + 1]
  end
  groups[#groups + 1] = g
  local low = after(g['last-delivered-id'])
  if g['pending'] > 0 then
    local pending = redis.call('XPENDING', stream, g['name'])[2]
    if before(pending, low) then
      low = pending
    end
  end
  if not mark or before(low, mark) then
    mark = low
  end
end

local function size(rows)
  local bytes = 0
  for _, row in ipairs(rows) do
    for _, text in ipairs(row[2]) do
      bytes = bytes + #text
    end
  end
  return bytes
end
local enough = 4194304 -- bytes to look at in one run, as the server's other clients wait meanwhile

local upto, more = nil, 0 -- entries before it go
local function reach(id)
  if not force and mark and before(mark, id) then
    id = mark
  end
  if not upto or before(upto, id) then
    upto = id
  end
end
if acknowledged and mark then
  reach(mark)
end
if age ~= '' then
  reach(age)
end
if most ~= '' then
  local excess, from, id, bytes = redis.call('XLEN', stream) - tonumber(most), '-', nil, 0
  for _ = 1, 1000 do
    if excess <= 0 or bytes > enough then
      break
    end
    local rows = redis.call('XRANGE', stream, from, '+', 'COUNT', math.min(excess, 10))
    bytes = bytes + size(rows)
    if #rows == 0 then
      excess = 0
      break
    end
    excess = excess - #rows
    id = after(rows[#rows][1])
    from = id
    if not force and mark and before(mark, id) then
      excess = 0
    end
  end
  if excess > 0 then
    more = 1
  end
  if id then
    reach(id)
  end
end
if not upto then
  return {0, 0, 0}
end

-- What groups lose by it, undelivered, is told to them; what was delivered is
-- found missing when it is due.
local lost = 0
if force then
  -- The one that is farthest behind comes first, and bounds how far a run goes.
  table.sort(groups, function(a, b) return before(a['last-delivered-id'], b['last-delivered-id']) end)
  for _, g in ipairs(groups) do
    local from = after(g['last-delivered-id'])
    if before(from, upto) then
      local n, bytes = 0, 0
      while before(from, upto) do
        if n >= 10000 or bytes > enough then
          upto, more = from, 1
          break
        end
        local rows = redis.call('XRANGE', stream, from, '(' .. upto, 'COUNT', 10)
        if #rows == 0 then
          break
        end
        n, bytes = n + #rows, bytes + size(rows)
        from = after(rows[#rows][1])
      end
      if n > 0 then
        redis.call('HINCRBY', losses, g['name'], n)
        lost = lost + n
        if g['entries-read'] then
          redis.call('XGROUP', 'SETID', stream, g['name'], previous(upto), 'ENTRIESREAD', g['entries-read'] + n)
        end
      end
    end
  end
end
return {redis.call('XTRIM', stream, 'MINID', '=', upto), lost, more}
