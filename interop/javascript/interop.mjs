// The official CloudEvents SDK of JavaScript publishes to the gateway unmodified
// and reads its webhooks; the standardwebhooks library verifies them.
//
// Usage: node interop.mjs HTTP LISTEN   (the configuration pushes topic interop-js to LISTEN)
import http from 'node:http';
import { CloudEvent, HTTP } from 'cloudevents';
import { Webhook } from 'standardwebhooks';

const [base, listen] = process.argv.slice(2);
const secret = 'whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD';
let passed = 0;
const check = (name, ok, what) => {
  if (!ok) {
    console.error(`FAILED ${name}:`, what);
    process.exit(1);
  }
  passed++;
  console.log(`ok   ${name}`);
};

const waiting = [];
const received = [];
const server = http.createServer((request, response) => {
  const chunks = [];
  request.on('data', (c) => chunks.push(c));
  request.on('end', () => {
    const body = Buffer.concat(chunks).toString();
    let result;
    try {
      new Webhook(secret).verify(body, request.headers);
      result = { event: HTTP.toEvent({ headers: request.headers, body }) };
    } catch (error) {
      result = { error };
    }
    response.writeHead(204).end();
    const next = waiting.shift();
    if (next) next(result);
    else received.push(result);
  });
});
const [host, port] = listen.split(':');
await new Promise((done) => server.listen(Number(port), host, done));
const next = () => (received.length ? Promise.resolve(received.shift()) : new Promise((done, fail) => {
  waiting.push(done);
  setTimeout(() => fail(new Error('no webhook came')), 60000).unref();
}));

for (const [name, encode] of [['binary', HTTP.binary], ['structured', HTTP.structured]]) {
  const sent = new CloudEvent({ id: name, source: '/interop/javascript', type: 'interop.test', subject: 'tea', count: '7', datacontenttype: 'application/json', data: { way: name, text: 'tea ☕' } });
  const { headers, body } = encode(sent);
  const answer = await fetch(`http://${base}/v1/topics/interop-js/events`, { method: 'POST', headers, body });
  const text = await answer.text();
  check(`cloudevents SDK publishes in ${name} mode`, answer.status === 200 && JSON.parse(text).offset >= 0, text);
  const { event, error } = await next();
  check(`the webhook of it is verified by standardwebhooks and read by the SDK (${name})`, !error, error);
  check(`it is the event that was sent (${name})`, event.id === name && event.count === '7' && event.subject === 'tea' && JSON.stringify(event.data) === JSON.stringify(sent.data), event);
}

// Three events in one request: the batch mode, signed as a whole.
const batch = ['1', '2', '3'].map((id) => new CloudEvent({ id, source: '/interop/javascript', type: 'interop.test', datacontenttype: 'application/json', data: { id } }));
for (const event of batch) {
  const { headers, body } = HTTP.binary(event);
  const answer = await fetch(`http://${base}/v1/topics/interop-js-batch/events`, { method: 'POST', headers: { ...headers, 'postern-key': event.id }, body });
  check('cloudevents SDK publishes an event for a batch', answer.status === 200, await answer.text());
}
const got = [];
while (got.length < batch.length) {
  const { event, error } = await next();
  check('the batch is verified by standardwebhooks and read by the SDK', !error, error);
  got.push(...(Array.isArray(event) ? event : [event]));
}
check('each event of the batch came once', got.map((e) => e.id).sort().join() === '1,2,3' && got.every((e) => e.data.id === e.id), got);

server.close();
console.log(`javascript: ${passed} passed, 0 failed`);
process.exit(0);
