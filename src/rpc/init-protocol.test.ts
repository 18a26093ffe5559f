import assert from 'node:assert/strict';
import { test } from 'node:test';
import fc from 'fast-check';
import {
  decodeReply,
  decodeRequest,
  decodeResult,
  encodeFrame,
  FRAME_MAX_BYTES,
  FrameDecoder,
  InvalidRequest,
  ProtocolError,
} from './init-protocol.ts';

const request = fc.record({
  id: fc.integer({ min: 1, max: 0xffff_ffff }),
  method: fc.constant('logs' as const),
  params: fc.record(
    {
      name: fc.stringMatching(/^[a-z][a-z.]{0,20}$/),
      tail: fc.integer({ min: 0, max: 100_000 }),
      follow: fc.boolean(),
    },
    { requiredKeys: [] },
  ),
});

test('frames survive being cut anywhere', () => {
  fc.assert(
    fc.property(fc.array(request, { maxLength: 5 }), fc.infiniteStream(fc.nat({ max: 64 })), (requests, steps) => {
      const bytes = Buffer.concat(requests.map((one) => encodeFrame(one)));
      const decoder = new FrameDecoder();
      const read: unknown[] = [];
      for (let at = 0; at < bytes.length; ) {
        const step: number = steps.next().value;
        read.push(...decoder.push(bytes.subarray(at, at + step)).map(decodeRequest));
        at += step;
      }
      assert.deepEqual(read, structuredClone(requests));
      assert.equal(decoder.pendingBytes, 0);
    }),
  );
});

test('a long frame in many small chunks costs what its bytes cost', () => {
  const body = Buffer.from(JSON.stringify('x'.repeat(FRAME_MAX_BYTES - 2)));
  const frame = Buffer.alloc(4 + body.length);
  frame.writeUInt32LE(body.length);
  body.copy(frame, 4);
  const decoder = new FrameDecoder();
  const cut = frame.length - 10_000;
  decoder.push(frame.subarray(0, cut));
  const startedMs = performance.now();
  for (let at = cut; at < frame.length - 1; at += 1) assert.equal(decoder.push(frame.subarray(at, at + 1)).length, 0);
  // Copying what is pending with each chunk takes seconds.
  const tookMs = performance.now() - startedMs;
  assert.ok(tookMs < 500, `10,000 bytes took ${tookMs} ms`);
  assert.equal(decoder.pendingBytes, frame.length - 1);
  assert.equal(decoder.push(frame.subarray(-1)).length, 1);
  assert.equal(decoder.pendingBytes, 0);
});

test('no bytes make the decoder throw anything but ProtocolError', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), (bytes) => {
      const framed = Buffer.concat([Uint8Array.of(bytes.length, 0, 0, 0), bytes]);
      for (const input of [bytes, framed])
        try {
          new FrameDecoder().push(input);
        } catch (error) {
          assert.ok(error instanceof ProtocolError);
        }
    }),
  );
});

test('a frame of no bytes or of more than 1 MiB is refused by its length alone', () => {
  const announce = (length: number) => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(length);
    return () => new FrameDecoder().push(bytes);
  };
  assert.throws(announce(0), ProtocolError);
  assert.throws(announce(FRAME_MAX_BYTES + 1), /announces 1048577 bytes/);
  assert.deepEqual(announce(FRAME_MAX_BYTES)(), []);
});

test('any JSON as a request is refused as InvalidRequest or ProtocolError', () => {
  fc.assert(
    fc.property(
      fc.oneof(fc.jsonValue(), fc.record({ id: fc.nat(), method: fc.string(), params: fc.jsonValue() })),
      (value) => {
        try {
          decodeRequest(value);
        } catch (error) {
          assert.ok(error instanceof ProtocolError || error instanceof InvalidRequest, String(error));
        }
      },
    ),
  );
});

test('an unknown method or parameter can be answered with its id', () => {
  for (const bad of [
    { id: 7, method: 'format' },
    { id: 7, method: 'toString' },
    { id: 7, method: 'status', params: { all: true } },
    { id: 7, method: 'reboot', params: {} },
  ])
    assert.throws(
      () => decodeRequest(bad),
      (error) => error instanceof InvalidRequest && error.id === 7,
    );
});

test('a reply has exactly one of result, event and error', () => {
  assert.throws(() => decodeReply({ id: 1 }), ProtocolError);
  assert.throws(() => decodeReply({ id: 1, result: null, event: {} }), ProtocolError);
  assert.deepEqual(decodeReply({ id: 1, result: null }), { id: 1, result: null });
});

test('a result of another shape is refused by the path of what is wrong', () => {
  assert.throws(() => decodeResult('services', [{ name: 'etcd' }]), /result of services\[0\]\.state is missing/);
});
