-- wrk: posts the file named by $IMAGE and prints what came back as one line of JSON.
local file = assert(io.open(os.getenv("IMAGE"), "rb"))
wrk.method, wrk.body = "POST", file:read("*a")
wrk.headers["Content-Type"] = "application/octet-stream"
file:close()

function done(summary, latency)
  local e = summary.errors
  print(string.format('{"requests": %d, "seconds": %.3f, "p50": %.3f, "p95": %.3f, "p99": %.3f, "not_2xx": %d, "broken": %d}', summary.requests, summary.duration / 1e6,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3, e.status, e.connect + e.read + e.write + e.timeout))
end
