// Publishing and subscribing at once: RATE events/s over HTTP and as many over gRPC,
// and one subscriber that acknowledges each. A run in which anything that was
// stored is not delivered fails.
//   k6 run -e RATE=500 -e DURATION=30s loadtest/mixed.js
import http from 'k6/http';
import grpc from 'k6/net/grpc';
import encoding from 'k6/encoding';
import { check } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const base = __ENV.HTTP || 'http://127.0.0.1:7600';
const address = __ENV.GRPC || '127.0.0.1:7601';
const topic = __ENV.TOPIC || 'loadtest-mixed';
const rate = Number(__ENV.RATE || 200);
const duration = __ENV.DURATION || '10s';
const seconds = Number(duration.replace(/s$/, '')); // DURATION is in seconds: 30s
if (!(seconds > 0)) throw new Error(`DURATION=${duration} is not a number of seconds, like 30s`);
const stored = new Counter('events_stored');
const delivered = new Counter('events_delivered');
const took = new Trend('publish_to_delivery', true);
const client = new grpc.Client();
let connected = false;

function connect() {
  if (connected) return;
  client.connect(address, { plaintext: true, reflect: true });
  connected = true;
}

const publishing = { executor: 'constant-arrival-rate', rate, timeUnit: '1s', duration, preAllocatedVUs: 20, maxVUs: 200, startTime: '2s' };
const expected = Math.floor(2 * rate * seconds * 0.95); // k6 may drop some arrivals

export const options = {
  scenarios: {
    subscribe: { executor: 'shared-iterations', vus: 1, iterations: 1, maxDuration: `${seconds + 30}s`, exec: 'subscribe' },
    http: Object.assign({ exec: 'viaHTTP' }, publishing),
    grpc: Object.assign({ exec: 'viaGRPC' }, publishing),
  },
  thresholds: {
    events_stored: [`count>=${expected}`],
    events_delivered: [`count>=${expected}`],
    checks: ['rate==1'],
    http_req_failed: ['rate==0'],
    publish_to_delivery: ['p(99)<5000'],
  },
};

const body = () => JSON.stringify({ sent: Date.now() });

export function viaHTTP() {
  const r = http.post(`${base}/v1/topics/${topic}/events`, body(), { headers: { 'Content-Type': 'application/json', 'Postern-Key': `h${__ITER % 100}` } });
  if (check(r, { stored: (r) => r.status === 200 })) stored.add(1);
}

export function viaGRPC() {
  connect();
  const r = client.invoke('postern.v1.Publisher/Publish', { topic, events: [{ key: encoding.b64encode(`g${__ITER % 100}`), data: encoding.b64encode(body()) }] });
  if (check(r, { stored: (r) => r.status === grpc.StatusOK && r.message.results[0].position !== null })) stored.add(1);
}

export function setup() {
  // A subscription that begins where the topic ends now: older runs do not count.
  http.post(`${base}/v1/topics/${topic}/events`, body(), { headers: { 'Content-Type': 'application/json' } });
  return { name: `k6-mixed-${Date.now()}` };
}

export function subscribe(run) {
  connect();
  const s = new grpc.Stream(client, 'postern.v1.Subscriber/Subscribe');
  const seen = {};
  let ended = false;
  s.on('data', (m) => {
    const d = (m.deliveries && m.deliveries.deliveries) || [];
    if (d.length === 0) return;
    for (const one of d) {
      const at = `${one.position.partition}/${one.position.offset}`;
      if (seen[at]) check(one, { 'delivered once': () => false });
      seen[at] = true;
      took.add(Date.now() - JSON.parse(encoding.b64decode(one.event.data, 'std', 's')).sent);
    }
    s.write({ settle: { acks: d.map((one) => one.deliveryId) } });
    delivered.add(d.length);
  });
  s.on('error', (e) => { if (!ended) check(e, { 'no stream error': () => false }); });
  s.write({ open: { inline: { name: run.name, topics: [topic], start: { edge: 'EDGE_LATEST' } }, window: { max_messages: 1000 } } });
  setTimeout(() => { ended = true; s.end(); }, (seconds + 7) * 1000);
}
