// Frames that no stock client sends: they are ignored, and the same connection is served on.

import assert from 'node:assert/strict'
import { once } from 'node:events'
import { after, before, test } from 'node:test'
import { Carrick, MEMORY, eventually } from './carrick.js'
import { recorder } from './recorder.js'

let server
before(async () => (server = await Carrick.start(MEMORY)))
after(() => server?.dispose())

test('malformed frames do not stall the connection', async () => {
  const Socket = recorder()
  const socket = new Socket(`${server.url}`, 'actioncable-v1-ext-json')
  await once(socket, 'open')
  const raw = text => new Promise((resolve, reject) => {
    Object.getPrototypeOf(Socket).prototype.send.call(socket, text, error => (error ? reject(error) : resolve()))
  })
  const identifier = JSON.stringify({ channel: '$pubsub', stream_name: 'chat' })
  const history = fields => JSON.stringify({ command: 'history', identifier, history: fields })
  const frames = [
    '', 'nonsense', 'null', '[]', '{', '{"command":7}', '{"command":"dance"}', '{"identifier":"x"}',
    '{"command":"subscribe"}', '{"command":"subscribe","identifier":{}}', '['.repeat(5_000),
    history({ since: true }), history({ since: 1.5 }), history({ streams: [] }), history({ streams: { chat: 7 } }),
    JSON.stringify({ command: 'message', identifier, data: { action: 'speak' } }), Buffer.from([0xff, 0xfe, 0x00])
  ]
  for (const frame of frames) await raw(frame)
  socket.send(JSON.stringify({ command: 'subscribe', identifier }))
  for (const frame of frames) await raw(frame)
  socket.send(JSON.stringify({ command: 'ping' }))
  await eventually('pong', () => Socket.frames('pong').length === 1)
  await server.publish('chat', { n: 1 })
  await eventually('the message', () => Socket.received.some(frame => frame.message?.n === 1))
  assert.equal(Socket.frames('confirm_subscription').length, 1)
  assert.equal(socket.readyState, Socket.OPEN)
  socket.close()
})
