// The stock AnyCable client, unmodified: it keeps one position per stream and removes no duplicates.

import assert from 'node:assert/strict'
import { after, afterEach, before, describe, test } from 'node:test'
import { createCable } from '@anycable/core'
import WebSocket from 'ws'
import { Carrick, DURABLE, MEMORY, eventually, sleep } from './carrick.js'
import { recorder } from './recorder.js'

const cables = []
let streams = 0

/** A stream that no other test uses. */
const newStream = () => `chat/${++streams}`

/** A stock client with a short way back. */
function client(server, options = {}) {
  const socket = recorder()
  const cable = createCable(server.url, {
    protocol: 'actioncable-v1-ext-json',
    websocketImplementation: socket,
    pingInterval: 1_000,
    maxMissingPings: 5,
    reconnectStrategy: () => 50,
    logLevel: 'error',
    ...options
  })
  cables.push(cable)
  return { cable, socket }
}

/** Follows a stream: numbers received, their positions, events of the channel. */
async function follow(cable, stream) {
  const channel = cable.streamFrom(stream)
  const seen = { channel, numbers: [], messages: [], positions: [], infos: [], connects: [] }
  channel.on('message', (message, meta) => {
    seen.messages.push(message)
    seen.numbers.push(message.n)
    seen.positions.push(meta)
  })
  channel.on('info', event => seen.infos.push(event.type))
  channel.on('connect', event => seen.connects.push(event))
  await channel.ensureSubscribed()
  return seen
}

const upTo = last => Array.from({ length: last }, (_, index) => index + 1)
const has = (seen, count) => eventually(`${count} messages`, () => seen.numbers.length >= count)
const connected = (seen, count) => eventually(`connected ${count} times`, () => seen.connects.length >= count)
const identifiers = sid => JSON.stringify({ sid })

afterEach(() => {
  for (const cable of cables.splice(0)) cable.disconnect()
})

const STORES = { 'in memory': MEMORY, 'in embedded NATS': DURABLE }

for (const [store, options] of Object.entries(STORES)) describe(`a stock client of a server with its store ${store}`, () => {
  let server
  before(async () => (server = await Carrick.start(options)))
  after(() => server?.dispose())

  test('subscribes and receives messages with their positions', async () => {
    const stream = newStream()
    const seen = await follow(client(server).cable, stream)
    const position = await server.publish(stream, { n: 1 })
    await has(seen, 1)
    assert.deepEqual(seen.positions, [{ stream, epoch: position.epoch, offset: position.offset }])
  })

  test('whispers to others and not to itself', async () => {
    const stream = newStream()
    const one = await follow(client(server).cable, stream)
    const two = await follow(client(server).cable, stream)
    await one.channel.whisper({ n: 7 })
    await has(two, 1)
    await sleep(300)
    assert.deepEqual([one.numbers, two.numbers], [[], [7]])
    assert.equal(two.positions[0], undefined)
  })

  test('gets history by time', async () => {
    const stream = newStream()
    await server.publishNumbers(stream, 1, 3)
    const { cable, socket } = client(server, { historyTimestamp: Math.floor(Date.now() / 1000) - 30 })
    const seen = await follow(cable, stream)
    await has(seen, 3)
    await server.publish(stream, { n: 4 })
    await has(seen, 4)
    assert.deepEqual(seen.numbers, upTo(4))
    assert.equal(socket.frames('confirm_history').length, 1)
  })

  test('gets history by position after a drop without a session', async () => {
    const stream = newStream()
    const { cable, socket } = client(server, { protocolOptions: { disableSessionRecovery: true } })
    const seen = await follow(cable, stream)
    await server.publishNumbers(stream, 1, 2)
    await has(seen, 2)
    socket.drop()
    await server.publishNumbers(stream, 3, 5)
    await connected(seen, 2)
    await has(seen, 5)
    assert.deepEqual(seen.numbers, upTo(5))
    assert.equal(socket.commands('subscribe').length, 2)
    assert.equal(socket.commands('subscribe')[1].history.streams[stream].offset, seen.positions[1].offset)
  })

  test('without time-based history asks for positions only and is not told of a loss', async () => {
    const stream = newStream()
    const { cable, socket } = client(server, { historyTimestamp: false })
    const seen = await follow(cable, stream)
    socket.drop()
    await connected(seen, 2)
    await server.publish(stream, { n: 1 })
    await has(seen, 1)
    socket.drop()
    await connected(seen, 3)
    await server.publish(stream, { n: 2 })
    await has(seen, 2)
    assert.deepEqual(seen.numbers, upTo(2))
    assert.ok(!seen.infos.includes('history_not_found'), seen.infos)
  })

  test('drops and is restored without subscribing again', async () => {
    const stream = newStream()
    const { cable, socket } = client(server)
    const reconnects = []
    cable.on('connect', event => reconnects.push(event))
    const seen = await follow(cable, stream)
    await server.publishNumbers(stream, 1, 2)
    await has(seen, 2)
    socket.drop()
    await server.publishNumbers(stream, 3, 6)
    await connected(seen, 2)
    await server.publishNumbers(stream, 7, 8)
    await has(seen, 8)
    assert.deepEqual(seen.numbers, upTo(8))
    assert.deepEqual(reconnects, [{ reconnect: false, restored: false }, { reconnect: true, restored: true }])
    assert.deepEqual(seen.connects[1], { reconnect: true, restored: true })
    assert.equal(socket.commands('subscribe').length, 1)
    assert.equal(socket.frames('confirm_subscription').length, 1)
    assert.ok(!seen.infos.includes('history_not_found'), seen.infos)
  })

  test('that had received nothing when it dropped loses nothing', async () => {
    const stream = newStream()
    const { cable, socket } = client(server)
    const seen = await follow(cable, stream)
    socket.drop()
    await server.publishNumbers(stream, 1, 3)
    await connected(seen, 2)
    await has(seen, 3)
    assert.deepEqual(seen.numbers, upTo(3))
  })

  test('sees every message once and in order, however often it drops', async () => {
    const stream = newStream()
    const { cable, socket } = client(server)
    const seen = await follow(cable, stream)
    const other = await follow(client(server).cable, stream)
    const publishing = server.publishNumbers(stream, 1, 200)
    for (let drop = 1; drop <= 6; drop++) {
      await sleep(40 + 25 * drop)
      socket.drop()
      await connected(seen, drop + 1)
    }
    await publishing
    await has(seen, 200)
    await has(other, 200)
    await sleep(300)
    assert.deepEqual(seen.numbers, upTo(200))
    assert.deepEqual(other.numbers, upTo(200))
    assert.ok(seen.connects.slice(1).every(event => event.restored))
    assert.ok(!seen.infos.includes('history_not_found'), seen.infos)
  })

  test('unsubscribes and subscribes again', async () => {
    const stream = newStream()
    const { cable, socket } = client(server)
    const first = await follow(cable, stream)
    first.channel.disconnect()
    await eventually('unsubscribed', () => socket.commands('unsubscribe').length === 1)
    await sleep(500)
    const second = await follow(cable, stream)
    await server.publish(stream, { n: 1 })
    await has(second, 1)
    assert.deepEqual([first.numbers, second.numbers], [[], [1]])
  })

  test('is disconnected remotely and its session is dead', async () => {
    const stream = newStream()
    const { cable } = client(server)
    const seen = await follow(cable, stream)
    const sid = cable.sessionId
    await server.publish(stream, { n: 1 })
    await has(seen, 1)
    await server.disconnect(identifiers(sid), true)
    await connected(seen, 2)
    assert.deepEqual(seen.connects[1], { reconnect: true, restored: false })
    assert.notEqual(cable.sessionId, sid)
    const welcome = await new Promise((resolve, reject) => {
      const socket = new WebSocket(`${server.url}?sid=${sid}`, 'actioncable-v1-ext-json')
      socket.on('error', reject)
      socket.on('message', data => {
        socket.close()
        resolve(JSON.parse(data))
      })
    })
    assert.equal(welcome.type, 'welcome')
    assert.equal(welcome.restored, undefined)
  })

  test('does not come back if it must not', async () => {
    const { cable } = client(server)
    await follow(cable, newStream())
    await server.disconnect(identifiers(cable.sessionId), false)
    await eventually('closed', () => cable.state === 'closed')
  })
})

describe('a stock client of a server that goes', () => {
  let server
  before(async () => (server = await Carrick.start()))
  after(() => server?.dispose())

  for (const end of ['kill', 'stop']) {
    test(`loses nothing when the server ends (${end}) and returns with its store`, async () => {
      const stream = newStream()
      const { cable, socket } = client(server)
      const seen = await follow(cable, stream)
      await server.publishNumbers(stream, 1, 5)
      await has(seen, 3)
      await server[end]()
      await server.start()
      await server.publishNumbers(stream, 6, 8)
      await has(seen, 8)
      await sleep(300)
      assert.deepEqual(seen.numbers, upTo(8))
      assert.deepEqual(seen.connects[1], { reconnect: true, restored: true })
      assert.equal(socket.commands('subscribe').length, 1)
      assert.ok(!seen.infos.includes('history_not_found'), seen.infos)
    })
  }

  test('is told when the history is gone: another epoch', async () => {
    const stream = newStream()
    const seen = await follow(client(server).cable, stream)
    await server.publish(stream, { n: 1 })
    await has(seen, 1)
    await server.stop()
    server.wipe()
    await server.start()
    await eventually('history_not_found', () => seen.infos.includes('history_not_found'))
    await server.publish(stream, { n: 2 })
    await has(seen, 2)
    assert.deepEqual(seen.numbers, upTo(2))
    assert.notEqual(seen.positions[0].epoch, seen.positions[1].epoch)
  })
})
