// Publishing under load: WAY=http (default), cloudevents, batch, grpc or stream.
//   k6 run -e WAY=grpc -e VUS=16 -e DURATION=20s loadtest/publish.js
//   k6 run -e PROFILE=spike loadtest/publish.js       smoke (default), load, stress, soak or spike
// A run that stored nothing fails, and so does one with errors.
import http from 'k6/http';
import grpc from 'k6/net/grpc';
import encoding from 'k6/encoding';
import { check, fail } from 'k6';
import { Counter } from 'k6/metrics';

const way = __ENV.WAY || 'http';
const topic = __ENV.TOPIC || 'loadtest';
const base = __ENV.HTTP || 'http://127.0.0.1:7600';
const address = __ENV.GRPC || '127.0.0.1:7601';
const batch = Number(__ENV.BATCH || 100);
const stored = new Counter('events_stored');

// How the load goes, as PROFILE says; VUS is its height, DURATION the length of its main part.
const vus = Number(__ENV.VUS || 8);
const duration = __ENV.DURATION || '10s';
const stages = (...s) => ({ executor: 'ramping-vus', startVUs: 0, stages: s.map(([duration, target]) => ({ duration, target })) });
const profiles = {
  smoke: { executor: 'constant-vus', vus, duration },
  load: stages([duration, vus], [duration, vus], ['5s', 0]),
  stress: stages([duration, vus], [duration, vus * 2], [duration, vus * 4], ['5s', 0]),
  soak: stages(['1m', vus], [__ENV.DURATION || '1h', vus], ['5s', 0]),
  spike: stages(['5s', Math.ceil(vus / 8)], ['2s', vus * 8], [duration, vus * 8], ['2s', Math.ceil(vus / 8)], [duration, Math.ceil(vus / 8)]),
};
const profile = __ENV.PROFILE || 'smoke';
if (!profiles[profile]) throw new Error(`PROFILE=${profile} is not one of ${Object.keys(profiles).join(', ')}`);

export const options = {
  scenarios: { publish: profiles[profile] },
  thresholds: {
    events_stored: [`count>=${__ENV.MIN_STORED || 100}`],
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    http_req_duration: ['p(99)<2000'],
    grpc_req_duration: ['p(99)<2000'],
  },
};

const payload = 'x'.repeat(1024);
const data = encoding.b64encode(payload);
const client = new grpc.Client();
let connected = false;

function connect() {
  if (connected) return;
  client.connect(address, { plaintext: true, reflect: true });
  connected = true;
}

const events = (n) => Array.from({ length: n }, (_, i) => ({ key: encoding.b64encode(`${__VU}-${(__ITER + i) % 1000}`), data }));

const ways = {
  http() {
    const r = http.post(`${base}/v1/topics/${topic}/events`, payload, { headers: { 'Content-Type': 'text/plain', 'Postern-Key': `${__VU}-${__ITER % 1000}` } });
    if (check(r, { stored: (r) => r.status === 200 && r.json('offset') >= 0 })) stored.add(1);
  },
  cloudevents() {
    const body = JSON.stringify({ specversion: '1.0', id: `${__VU}-${__ITER}`, source: '/k6', type: 'load', data: { payload } });
    const r = http.post(`${base}/v1/topics/${topic}/events`, body, { headers: { 'Content-Type': 'application/cloudevents+json' } });
    if (check(r, { stored: (r) => r.status === 200 && r.json('offset') >= 0 })) stored.add(1);
  },
  batch() {
    const body = JSON.stringify(Array.from({ length: batch }, (_, i) => ({ specversion: '1.0', id: `${__VU}-${__ITER}-${i}`, source: '/k6', type: 'load', data: payload })));
    const r = http.post(`${base}/v1/topics/${topic}/events`, body, { headers: { 'Content-Type': 'application/cloudevents-batch+json' } });
    if (check(r, { stored: (r) => r.status === 200 && r.json('results').length === batch })) stored.add(batch);
  },
  grpc() {
    connect();
    const r = client.invoke('postern.v1.Publisher/Publish', { topic, events: events(1) });
    if (check(r, { stored: (r) => r.status === grpc.StatusOK && r.message.results[0].position !== null })) stored.add(1);
  },
  stream() {
    connect();
    const requests = 20;
    const s = new grpc.Stream(client, 'postern.v1.Publisher/PublishStream');
    let answered = 0;
    s.on('data', (m) => {
      for (const d of m.done || []) {
        answered++;
        stored.add((d.results || []).filter((r) => r.position).length);
      }
      if (answered === requests) check(answered, { 'every request answered': (n) => n === requests });
    });
    s.on('error', (e) => check(e, { 'no stream error': () => false }));
    for (let i = 1; i <= requests; i++) s.write({ sequence: i, request: { topic, events: events(batch) } });
    s.end();
  },
};

// setup tries one event: a topic that is not there should not cost a soak to find out.
export function setup() {
  const r = http.post(`${base}/v1/topics/${topic}/events`, payload, { headers: { 'Content-Type': 'text/plain', 'Postern-Key': 'setup' } });
  if (r.status !== 200) fail(`${base} answered the first event with ${r.status || r.error}: ${r.body}`);
}

export default ways[way] || (() => fail(`WAY=${way} is not one of ${Object.keys(ways).join(', ')}`));
