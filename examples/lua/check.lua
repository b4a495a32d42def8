-- Fails unless the interpreter that was just built computes what it should.
local function sieve(limit)
  local composite, primes = {}, {}
  for n = 2, limit do
    if not composite[n] then
      primes[#primes + 1] = n
      for multiple = n * n, limit, n do composite[multiple] = true end
    end
  end
  return primes
end

local primes = sieve(10000)
assert(#primes == 1229 and primes[#primes] == 9973, "the sieve is wrong")

local words = {}
for word in ("one two three"):gmatch("%a+") do words[#words + 1] = word:upper() end
assert(table.concat(words, "-") == "ONE-TWO-THREE", "strings are wrong")

local generate = coroutine.wrap(function() for n = 1, 3 do coroutine.yield(n * n) end end)
assert(generate() + generate() + generate() == 14, "coroutines are wrong")
assert(utf8.len("naïve") == 5 and 7 // 2 == 3 and 2^53 == 2^53 + 0.5 - 0.5, "numbers are wrong")

print(_VERSION .. " works: " .. #primes .. " primes below 10000")
