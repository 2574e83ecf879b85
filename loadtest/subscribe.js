// Subscribing under load: publishes EVENTS events, then drains them over gRPC
// Subscribe, acknowledging each. A run that did not get every one fails.
//   k6 run -e EVENTS=20000 loadtest/subscribe.js
import grpc from 'k6/net/grpc';
import encoding from 'k6/encoding';
import { check } from 'k6';
import { Counter } from 'k6/metrics';

const total = Number(__ENV.EVENTS || 10000);
const address = __ENV.GRPC || '127.0.0.1:7601';
const topic = __ENV.TOPIC || `loadtest-subscribe`;
const delivered = new Counter('events_delivered');
const client = new grpc.Client();

export const options = {
  scenarios: { drain: { executor: 'shared-iterations', vus: 1, iterations: 1, maxDuration: __ENV.DURATION || '2m' } },
  setupTimeout: '2m',
  thresholds: { events_delivered: [`count>=${total}`], checks: ['rate==1'] },
};

export function setup() {
  client.connect(address, { plaintext: true, reflect: true });
  const data = encoding.b64encode('x'.repeat(1024));
  for (let sent = 0; sent < total; ) {
    const n = Math.min(500, total - sent);
    const events = Array.from({ length: n }, (_, i) => ({ key: encoding.b64encode(`k${(sent + i) % 1000}`), data }));
    const r = client.invoke('postern.v1.Publisher/Publish', { topic, events });
    if (!check(r, { published: (r) => r.status === grpc.StatusOK })) throw new Error(JSON.stringify(r.error));
    sent += n;
  }
  client.close();
  return { name: `k6-${Date.now()}` };
}

export default function (run) {
  client.connect(address, { plaintext: true, reflect: true });
  const s = new grpc.Stream(client, 'postern.v1.Subscriber/Subscribe');
  const next = {};
  let got = 0;
  s.on('data', (m) => {
    const d = (m.deliveries && m.deliveries.deliveries) || [];
    if (d.length === 0) return;
    for (const one of d) {
      const k = `${one.position.partition}/${one.event.key}`;
      const at = Number(one.position.offset);
      if (next[k] !== undefined && at <= next[k]) check(one, { 'in order for its key': () => false });
      next[k] = at;
    }
    s.write({ settle: { acks: d.map((one) => one.deliveryId) } });
    got += d.length;
    delivered.add(d.length);
    if (got >= total) {
      check(got, { 'every event delivered': (n) => n >= total });
      s.end();
    }
  });
  s.on('error', (e) => check(e, { 'no stream error': () => false }));
  s.write({ open: { inline: { name: run.name, topics: [topic] }, window: { max_messages: 1000 } } });
}
