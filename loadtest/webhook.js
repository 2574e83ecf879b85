// Webhooks under load: publishes at RATE events/s; the Go sink (loadtest/sink)
// counts what arrives. A run of which anything is missing fails.
//   go run ./loadtest/sink &                         # prints its address and a configuration to use
//   postern dev --config webhook.yaml &
//   k6 run -e RATE=500 loadtest/webhook.js
import http from 'k6/http';
import { check, sleep } from 'k6';
import { Counter } from 'k6/metrics';

const base = __ENV.HTTP || 'http://127.0.0.1:7600';
const sink = __ENV.SINK || 'http://127.0.0.1:7690';
const topic = __ENV.TOPIC || 'loadtest-webhook';
const stored = new Counter('events_stored');
const received = new Counter('webhooks_received');

export const options = {
  scenarios: {
    publish: { executor: 'constant-arrival-rate', rate: Number(__ENV.RATE || 200), timeUnit: '1s', duration: __ENV.DURATION || '10s', preAllocatedVUs: 50 },
  },
  teardownTimeout: '60s',
  thresholds: { events_stored: ['count>0'], webhooks_received: ['count>0'], checks: ['rate==1'], http_req_failed: ['rate==0'] },
};

const run = `${Date.now()}`;

export function setup() {
  http.post(`${sink}/reset`);
  return { run };
}

export default function () {
  const r = http.post(`${base}/v1/topics/${topic}/events`, JSON.stringify({ sent: Date.now() }), {
    headers: { 'Content-Type': 'application/json', 'Postern-Key': `k${__ITER % 100}`, 'Postern-Header-Run': run },
  });
  if (check(r, { stored: (r) => r.status === 200 })) {
    stored.add(1);
    http.post(`${sink}/expect`);
  }
}

export function teardown() {
  let s = {};
  for (let i = 0; i < 100; i++) {
    s = http.get(`${sink}/count`).json();
    if (s.received >= s.expected) break;
    sleep(0.3);
  }
  received.add(s.received);
  check(s, { 'every event received': (s) => s.received >= s.expected && s.expected > 0, 'none twice': (s) => s.repeated === 0 });
  console.log(`expected ${s.expected}, received ${s.received}, repeated ${s.repeated}; publish to webhook p50 ${s.p50_ms} ms, p99 ${s.p99_ms} ms`);
}
