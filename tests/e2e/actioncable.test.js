// The Rails client, unmodified: the base protocol, no history, no sessions; it repeats subscribes until answered.

import assert from 'node:assert/strict'
import { after, before, beforeEach, afterEach, describe, test } from 'node:test'
import { Carrick, MEMORY, eventually, sleep } from './carrick.js'
import { recorder } from './recorder.js'

// The client is made for browsers: it listens to the page's visibility.
globalThis.addEventListener ??= () => {}
globalThis.removeEventListener ??= () => {}
const { default: ActionCable } = await import('@rails/actioncable')
const { adapters, ConnectionMonitor, createConsumer } = ActionCable

// It reconnects when nothing has come for this many seconds; the server pings every second.
ConnectionMonitor.staleThreshold = 2

let streams = 0
const newStream = () => `rails/${++streams}`
const upTo = last => Array.from({ length: last }, (_, index) => index + 1)

function follow(consumer, params) {
  const seen = { numbers: [], connected: 0, rejected: 0, disconnected: 0 }
  seen.subscription = consumer.subscriptions.create(params, {
    connected: () => seen.connected++,
    rejected: () => seen.rejected++,
    disconnected: () => seen.disconnected++,
    received: message => seen.numbers.push(message.n)
  })
  return seen
}

const publicStream = stream => ({ channel: '$pubsub', stream_name: stream })
const has = (seen, count) => eventually(`${count} messages`, () => seen.numbers.length >= count)
const connected = (seen, times) => eventually(`connected ${times} times`, () => seen.connected >= times)

describe('the Rails client', () => {
  let server
  let socket
  let consumer
  before(async () => (server = await Carrick.start(MEMORY)))
  after(() => server?.dispose())
  beforeEach(() => {
    socket = recorder()
    adapters.WebSocket = socket
    consumer = createConsumer(server.url)
  })
  afterEach(() => consumer.disconnect())

  test('subscribes, receives in order and unsubscribes', async () => {
    const stream = newStream()
    const seen = follow(consumer, publicStream(stream))
    await connected(seen, 1)
    await server.publishNumbers(stream, 1, 20)
    await has(seen, 20)
    assert.deepEqual(seen.numbers, upTo(20))
    seen.subscription.unsubscribe()
    // Commands are carried out in order.
    await connected(follow(consumer, publicStream(newStream())), 1)
    await server.publish(stream, { n: 21 })
    await sleep(300)
    assert.deepEqual(seen.numbers, upTo(20))
    assert.equal(seen.connected, 1)
  })

  test('is served on the protocol it offers first', async () => {
    const seen = follow(consumer, publicStream(newStream()))
    await connected(seen, 1)
    assert.equal(socket.sockets[0].protocol, 'actioncable-v1-json')
  })

  test('gets a copy per subscription', async () => {
    const stream = newStream()
    const one = follow(consumer, publicStream(stream))
    const two = follow(consumer, { ...publicStream(stream), component: 2 })
    await connected(one, 1)
    await connected(two, 1)
    await server.publishNumbers(stream, 1, 5)
    await has(one, 5)
    await has(two, 5)
    assert.deepEqual([one.numbers, two.numbers], [upTo(5), upTo(5)])
  })

  test('is refused what it may not follow', async () => {
    const seen = follow(consumer, { channel: '$pubsub', signed_stream_name: 'forged--00' })
    await eventually('rejected', () => seen.rejected === 1)
    assert.equal(seen.connected, 0)
  })

  test('comes back after a drop and goes on', async () => {
    const stream = newStream()
    const seen = follow(consumer, publicStream(stream))
    await connected(seen, 1)
    await server.publish(stream, { n: 1 })
    await has(seen, 1)
    socket.drop()
    await connected(seen, 2)
    await server.publishNumbers(stream, 2, 4)
    await has(seen, 4)
    assert.deepEqual(seen.numbers, upTo(4))
    assert.equal(seen.disconnected, 1)
  })

  test('comes back after a restart of the server', async () => {
    const stream = newStream()
    const seen = follow(consumer, publicStream(stream))
    await connected(seen, 1)
    await server.stop()
    await eventually('disconnected', () => seen.disconnected === 1)
    assert.deepEqual(socket.frames('disconnect'), [{ type: 'disconnect', reason: 'server_restart', reconnect: true }])
    await server.start()
    await connected(seen, 2)
    await server.publish(stream, { n: 1 })
    await has(seen, 1)
    assert.deepEqual(seen.numbers, [1])
  })

  test('is disconnected remotely', async () => {
    const seen = follow(consumer, publicStream(newStream()))
    await connected(seen, 1)
    const [welcome] = socket.frames('welcome')
    await server.disconnect(JSON.stringify({ sid: welcome.sid }), false)
    await eventually('disconnected', () => seen.disconnected === 1)
    assert.deepEqual(socket.frames('disconnect'), [{ type: 'disconnect', reason: 'remote', reconnect: false }])
  })
})
