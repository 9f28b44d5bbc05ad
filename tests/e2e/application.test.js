// Stock clients in front, an application in Python behind, speaking gRPC by its own library: nothing of Carrick's code
// is on either side.

import assert from 'node:assert/strict'
import { after, afterEach, before, beforeEach, describe, test } from 'node:test'
import { Application } from './application.js'
import { Carrick, MEMORY, eventually, sleep } from './carrick.js'
import { CLIENTS, connected, has } from './stock-clients.js'

const identifier = room => JSON.stringify({ channel: 'Chat', room })
const cookie = user => ({ cookie: `theme=dark; user=${user}` })
let users = 0

for (const [name, makeClient] of Object.entries(CLIENTS)) describe(`${name} and an application in Python`, () => {
  let application
  let server
  let user
  let clients
  before(async () => {
    application = await Application.start()
    server = await Carrick.start(MEMORY, application.access)
  })
  after(async () => {
    await server?.dispose()
    await application?.kill()
  })
  beforeEach(async () => {
    application.forget()
    clients = []
    user = `user-${++users}`
  })
  afterEach(() => {
    for (const client of clients) client.close()
  })

  /** A client of this test's user, or of whoever the headers say. */
  function client(headers = cookie(user), query = '') {
    const made = makeClient(server.url + query, headers)
    clients.push(made)
    return made
  }
  const enter = async (room = user, by = client()) => {
    const seen = by.subscribe('Chat', { room })
    await connected(seen)
    return seen
  }

  test('is let in by its cookie', async () => {
    const { socket } = client()
    await eventually('welcome', () => socket.frames('welcome').length === 1)
    const [call] = application.calls('Connect')
    assert.equal(socket.frames('welcome')[0].sid, call.sid)
    assert.equal(call.protov, 'v1')
    const asked = application.said.find(said => said.connect === user)
    assert.equal(asked.headers.cookie, `theme=dark; user=${user}`)
    assert.equal(asked.headers.REMOTE_ADDR, '127.0.0.1')
    assert.ok(asked.url.startsWith(server.url.replace('ws:', 'http:')), asked.url)
  })

  test('is let in by a header or by the URL', async () => {
    await enter('lobby', client({ 'x-api-token': `token-of-${user}` }))
    await enter('lobby', client({}, `?ticket=${user}`))
    assert.deepEqual(application.said.filter(said => said.connect).map(said => said.connect), [user, user])
  })

  test('is refused and does not come back', async () => {
    const refused = client({ cookie: 'theme=dark' })
    await eventually('closed', refused.isClosed)
    assert.deepEqual(refused.socket.received, [{ type: 'disconnect', reason: 'unauthorized', reconnect: false }])
    await sleep(500)
    assert.equal(refused.socket.sockets.length, 1)
    const [call] = application.calls('Connect')
    assert.ok(!application.calls('Disconnect').some(({ sid }) => sid === call.sid), 'it was never in')
  })

  test('subscribes: what the application says comes first, in order', async () => {
    const { socket, subscribe } = client()
    const seen = subscribe('Chat', { room: user })
    await connected(seen)
    const frames = socket.received.filter(frame => frame.identifier && frame.type !== 'confirm_history')
    assert.deepEqual(frames, [
      { identifier: identifier(user), message: { hello: user } },
      { type: 'confirm_subscription', identifier: identifier(user) }
    ])
    const [command] = application.commands('subscribe')
    assert.deepEqual([command.identifiers, command.cstate, command.istate], [{ user }, { user }, {}])
  })

  test('is rejected and stays connected', async () => {
    const one = client()
    const seen = one.subscribe('Chat', { room: 'board' })
    await eventually('rejected', () => seen.rejected === 1)
    assert.equal(seen.connected, 0)
    await enter(user, one)
    await server.publish('chat/board', { n: 1 })
    await sleep(300)
    assert.deepEqual(seen.messages, [])
  })

  test('performs and is answered; state is kept between commands', async () => {
    const one = client()
    const seen = await enter(user, one)
    const other = await enter('lobby', one)
    for (const text of ['a', 'b', 'naïve "quotes" 🧵']) seen.perform('speak', { text })
    await eventually('three answers', () => seen.messages.filter(message => message.heard).length === 3)
    assert.deepEqual(seen.messages.slice(-3), [
      { heard: 'a', spoken: 1, in: user },
      { heard: 'b', spoken: 2, in: user },
      { heard: 'naïve "quotes" 🧵', spoken: 3, in: user }
    ])
    // The connection's state is everybody's, the subscription's its own; an empty value deletes.
    const answered = other.messages.length
    other.perform('speak', { text: 'c' })
    seen.perform('recall')
    seen.perform('forget')
    seen.perform('recall')
    await has(seen, 6)
    await has(other, answered + 1)
    assert.deepEqual(seen.messages.slice(-2), [{ last: 'c' }, { last: null }])
    assert.deepEqual(other.messages.at(-1), { heard: 'c', spoken: 1, in: 'lobby' })
  })

  test('receives broadcasts of the streams that the application chose', async () => {
    const seen = await enter()
    const receive = async (room, n) => server.publish(`chat/${room}`, { n })
    const numbers = () => seen.messages.map(message => message.n).filter(Boolean)
    await receive(user, 1)
    seen.perform('watch', { room: `${user}-2` })
    await eventually('watching', () => seen.messages.some(message => message.watching))
    await receive(`${user}-2`, 2)
    await eventually('both', () => numbers().length === 2)
    seen.perform('unwatch', { room: user })
    await eventually('unwatched', () => seen.messages.some(message => message.unwatched))
    await receive(user, 3)
    await receive(`${user}-2`, 4)
    await eventually('the other', () => numbers().length === 3)
    seen.perform('mute')
    await eventually('muted', () => seen.messages.includes('muted'))
    await receive(`${user}-2`, 5)
    await sleep(300)
    assert.deepEqual(numbers(), [1, 2, 4])
  })

  test('unsubscribes: the application is told and no message follows', async () => {
    const one = client()
    const seen = await enter(user, one)
    const other = await enter('lobby', one)
    seen.perform('speak', { text: 'last words' })
    await has(seen, 2)
    seen.unsubscribe()
    await eventually('told', () => application.commands('unsubscribe').length === 1)
    const [command] = application.commands('unsubscribe')
    assert.equal(command.identifier, identifier(user))
    assert.deepEqual(command.istate, { room: user, spoken: '1' })
    await eventually('the answer is applied', async () => {
      await server.publish('chat/lobby', { n: 1 })
      return other.messages.some(message => message.n === 1)
    })
    await server.publish(`chat/${user}`, { n: 1 })
    await sleep(300)
    assert.equal(seen.messages.length, 2)
  })

  test('leaves: one Disconnect call with all its subscriptions and their state', async () => {
    const one = client()
    const seen = await enter(user, one)
    await enter('lobby', one)
    seen.perform('speak', { text: 'bye' })
    await has(seen, 2)
    one.close()
    const [left] = await application.left(user)
    await sleep(500)
    assert.equal((await application.left(user)).length, 1)
    assert.deepEqual(new Set(left.subscriptions), new Set([identifier(user), identifier('lobby')]))
    assert.deepEqual(left.istate, {
      [identifier(user)]: { room: user, spoken: '1' },
      [identifier('lobby')]: { room: 'lobby', spoken: '0' }
    })
    assert.deepEqual(left.cstate, { user, last: 'bye' })
  })

  test('is closed when the application says so, after its last words', async () => {
    const one = client()
    const seen = await enter(user, one)
    seen.perform('quit')
    await eventually('closed', () => one.socket.sockets[0].readyState === one.socket.CLOSED)
    assert.deepEqual(seen.messages.at(-1), 'bye')
  })

  test('is disconnected remotely by its identifiers', async () => {
    const [one, two, other] = [client(), client(), client(cookie('somebody'))]
    await enter(user, one)
    await enter(user, two)
    await enter('lobby', other)
    await server.disconnect(JSON.stringify({ user }), false)
    await eventually('both closed', () => one.isClosed() && two.isClosed())
    assert.deepEqual(one.socket.frames('disconnect'), [{ type: 'disconnect', reason: 'remote', reconnect: false }])
    await eventually('told of both', async () => (await application.left(user)).length === 2)
    assert.ok(!other.isClosed())
    assert.equal(other.socket.frames('disconnect').length, 0)
  })

  test('is not hurt by a bug of the application', async () => {
    const one = client()
    const seen = await enter(user, one)
    seen.perform('crash')
    seen.perform('speak', { text: 'still here' })
    await has(seen, 2)
    assert.deepEqual(seen.messages[1], { heard: 'still here', spoken: 1, in: user })
    assert.equal(one.socket.sockets.length, 1)
  })

  test('does not wait for another one whose call is slow', async () => {
    const slow = await enter(user, client())
    const quick = await enter(user, client())
    slow.perform('ponder', { seconds: 2 })
    quick.perform('speak', { text: 'quick' })
    await has(quick, 2)
    assert.ok(!slow.messages.includes('pondered'))
    await eventually('pondered', () => slow.messages.includes('pondered'))
  })

  test('outlives the application: live messages go on, commands work again, newcomers wait', async () => {
    const one = client()
    const seen = await enter(user, one)
    seen.perform('speak', { text: 'before' })
    await has(seen, 2)
    await application.kill()
    await server.publish(`chat/${user}`, { n: 1 })
    await has(seen, 3)
    seen.perform('speak', { text: 'nobody hears it' })
    const late = client(cookie(`${user}-late`))
    const lateSeen = late.subscribe('Chat', { room: user })
    // Turned away without a word that would keep it from trying again.
    await eventually('turned away', () => late.socket.sockets[0].readyState === late.socket.CLOSED)
    assert.deepEqual(late.socket.received, [])
    await application.start()
    await eventually('heard again', () => {
      seen.perform('speak', { text: 'after' })
      return seen.messages.some(message => message.heard === 'after')
    })
    await connected(lateSeen)
    assert.ok(!late.isClosed())
    assert.equal(one.socket.sockets.length, 1, 'its connection was never lost')
    assert.equal(seen.connected, 1)
    assert.equal(application.commands('subscribe').filter(said => said.identifiers.user === user).length, 1)
    // Its state is with the server and outlived the application.
    const heard = seen.messages.filter(message => message.heard)
    assert.deepEqual(heard.map(message => message.spoken), heard.map((_, index) => index + 1))
  })

  test('a command under way when the application dies holds its client up no longer than its time limit', async () => {
    const one = client()
    const seen = await enter(user, one)
    seen.perform('ponder', { seconds: 30 })
    // Of clients of the tests before it commands may still be under way.
    await eventually('pondering', () => application.commands('message').some(said => said.identifiers.user === user))
    await application.kill()
    const killed = Date.now()
    await application.start()
    // Queued behind it. Whether the command itself is tried again is up to the time that is left; its answer is lost.
    seen.perform('speak', { text: 'after' })
    await has(seen, 2)
    assert.ok(Date.now() - killed < 10_000)
    assert.deepEqual(seen.messages[1], { heard: 'after', spoken: 1, in: user })
    assert.equal(one.socket.sockets.length, 1)
  })
})

/** Long enough for the way back; what it spared is counted. */
const GRACE = ['--disconnect_grace=8', '--metrics_http=/metrics']

describe('a session that is restored', () => {
  let application
  before(async () => (application = await Application.start()))
  after(() => application?.kill())
  beforeEach(() => application.forget())

  const makeClient = CLIENTS['@anycable/core']

  /** A client that has spoken, lost its connection, and is back. */
  async function comeBack(server, user) {
    const client = makeClient(server.url, cookie(user))
    const seen = client.subscribe('Chat', { room: user })
    await connected(seen)
    seen.perform('speak', { text: 'before' })
    await has(seen, 2)
    await server.publish(`chat/${user}`, { n: 1 })
    await has(seen, 3)
    const calls = application.said.length
    client.socket.drop()
    await server.publish(`chat/${user}`, { n: 2 })
    await connected(seen, 2)
    await has(seen, 4)
    assert.equal(client.socket.frames('welcome')[1].restored, true)
    return { client, seen, during: application.said.slice(calls) }
  }

  test('makes no Connect and no Command call, and has its state', async () => {
    const server = await Carrick.start(MEMORY, [...application.access, ...GRACE])
    try {
      const { client, seen, during } = await comeBack(server, 'ann')
      await eventually('the farewell is dropped', async () => (await server.metric('disconnects_spared_total')) === 1)
      assert.deepEqual([during, application.calls('Disconnect')], [[], []])
      seen.perform('speak', { text: 'after' })
      await has(seen, 5)
      assert.deepEqual(seen.messages.slice(2), [{ n: 1 }, { n: 2 }, { heard: 'after', spoken: 2, in: 'ann' }])
      client.close()
    } finally {
      await server.dispose()
    }
  })

  test('is told once to an application that has no such method, and never again', async () => {
    const server = await Carrick.start(MEMORY, [...application.access, '--rpc_restore', ...GRACE])
    try {
      const ann = await comeBack(server, 'ann')
      await eventually('told', () => application.calls('Restore').length === 1)
      const bob = await comeBack(server, 'bob')
      await sleep(500)
      assert.equal(application.calls('Restore').length, 1)
      assert.equal(application.calls('Connect').length, 2)
      ann.client.close()
      bob.client.close()
    } finally {
      await server.dispose()
    }
  })
})
