"""The official CloudEvents SDK of Python publishes to the gateway unmodified and
reads its webhooks, the standardwebhooks library verifies them, and a client
generated from the protos by grpcio subscribes and settles.

Usage: interop.py HTTP GRPC LISTEN   (addresses; the configuration pushes topic interop-py to LISTEN)
"""
import http.server
import queue
import sys
import threading

import grpc
import requests
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent, from_http
from postern.v1 import event_pb2, publisher_pb2, publisher_pb2_grpc, subscriber_pb2, subscriber_pb2_grpc, subscriptions_pb2
from standardwebhooks import Webhook

SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
PATIENCE = 60
base, grpc_address, listen = sys.argv[1:4]
received = queue.Queue()
passed = 0


def check(name, ok, what=""):
    global passed
    if not ok:
        sys.exit(f"FAILED {name}: {what}")
    passed += 1
    print(f"ok   {name}")


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            Webhook(SECRET).verify(body, {k.lower(): v for k, v in self.headers.items()})
            received.put((from_http(dict(self.headers), body), None))
        except Exception as e:  # told by the check that waits for the event
            received.put((None, e))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


host, port = listen.rsplit(":", 1)
server = http.server.ThreadingHTTPServer((host, int(port)), Receiver)
threading.Thread(target=server.serve_forever, daemon=True).start()

url = f"http://{base}/v1/topics/interop-py/events"
for name, encode in (("binary", to_binary), ("structured", to_structured)):
    # This SDK does not encode header values, so that binary mode carries ASCII only.
    subject = "café %" if name == "structured" else "100 %"
    sent = CloudEvent({"id": name, "source": "/interop/python", "type": "interop.test", "subject": subject, "datacontenttype": "application/json", "count": "7"}, {"way": name, "text": "tea ☕"})
    headers, body = encode(sent)
    answer = requests.post(url, headers=headers, data=body, timeout=PATIENCE)
    check(f"cloudevents SDK publishes in {name} mode", answer.status_code == 200 and answer.json()["offset"] >= 0, answer.text)
    got, error = received.get(timeout=PATIENCE)
    check(f"the webhook of it is verified by standardwebhooks and read by the SDK ({name})", error is None, error)
    check(f"it is the event that was sent ({name})",
          got["id"] == name and got["subject"] == subject and got["count"] == "7" and got.data == sent.data, got)

channel = grpc.insecure_channel(grpc_address)
publisher = publisher_pb2_grpc.PublisherStub(channel)
answer = publisher.Publish(publisher_pb2.PublishRequest(topic="interop-grpc", events=[event_pb2.Event(key=b"k", data=b"%d" % i) for i in range(10)]), timeout=PATIENCE)
check("a generated client publishes", all(r.HasField("position") for r in answer.results), answer)

frames = queue.Queue()
stream = subscriber_pb2_grpc.SubscriberStub(channel).Subscribe(iter(frames.get, None), timeout=PATIENCE)
frames.put(subscriber_pb2.SubscribeRequest(open=subscriber_pb2.Open(
    inline=subscriptions_pb2.Subscription(name="interop-grpc", topics=["interop-grpc"]), confirm=subscriber_pb2.CONFIRM_ON_COMMIT)))
data, committed, nacked = [], 0, False
for m in stream:
    for d in m.deliveries.deliveries:
        settlement = subscriber_pb2.Settlement(delivery_id=d.delivery_id, ack=subscriber_pb2.Ack())
        if d.event.data == b"3" and not nacked:
            nacked = True
            settlement = subscriber_pb2.Settlement(delivery_id=d.delivery_id, nack=subscriber_pb2.Nack(reason="once"))
            settlement.nack.delay.FromMilliseconds(10)
        else:
            data.append((d.event.data, d.attempt))
        frames.put(subscriber_pb2.SubscribeRequest(settle=subscriber_pb2.SettleBatch(settlements=[settlement])))
    committed += len(m.receipts.committed)
    if committed >= 11:
        frames.put(None)
check("a generated client subscribes in order and settles", data == [(b"%d" % i, 2 if i == 3 else 1) for i in range(10)], data)
check("its acks are committed", committed == 11, committed)
server.shutdown()
print(f"python: {passed} passed, 0 failed")
