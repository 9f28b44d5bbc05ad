// The two stock clients behind one face, for tests about what both must see.

import { createCable } from '@anycable/core'
import { eventually } from './carrick.js'
import { recorder } from './recorder.js'

// The Rails client is made for browsers: it listens to the page's visibility.
globalThis.addEventListener ??= () => {}
globalThis.removeEventListener ??= () => {}
const { default: ActionCable } = await import('@rails/actioncable')
const { adapters, ConnectionMonitor, createConsumer } = ActionCable

// It reconnects when nothing has come for this many seconds; the servers of the tests ping every second.
ConnectionMonitor.staleThreshold = 2

/** What a subscription has seen. */
const sight = () => ({ messages: [], connected: 0, rejected: 0, disconnected: 0 })

function rails(url, headers) {
  const socket = recorder(headers)
  adapters.WebSocket = socket
  const consumer = createConsumer(url)
  consumer.connect()
  return {
    socket,
    subscribe(channel, params) {
      const seen = sight()
      const subscription = consumer.subscriptions.create({ channel, ...params }, {
        connected: () => seen.connected++,
        rejected: () => seen.rejected++,
        disconnected: () => seen.disconnected++,
        received: message => seen.messages.push(message)
      })
      seen.perform = (action, data) => subscription.perform(action, data)
      seen.unsubscribe = () => subscription.unsubscribe()
      return seen
    },
    close: () => consumer.disconnect(),
    /** Gave up for good. */
    isClosed: () => !consumer.connection.isActive() && !consumer.connection.monitor.isRunning()
  }
}

function anycable(url, headers) {
  const socket = recorder(headers)
  const cable = createCable(url, {
    protocol: 'actioncable-v1-ext-json',
    websocketImplementation: socket,
    pingInterval: 1_000,
    maxMissingPings: 5,
    reconnectStrategy: () => 50,
    logLevel: 'error'
  })
  cable.connect().catch(() => {}) // told by its state, too
  return {
    socket,
    cable,
    subscribe(name, params) {
      const seen = sight()
      const channel = cable.subscribeTo(name, params)
      channel.on('connect', () => seen.connected++)
      channel.on('disconnect', () => seen.disconnected++)
      channel.on('close', error => (seen.rejected += error?.name === 'SubscriptionRejectedError' ? 1 : 0))
      channel.on('message', message => seen.messages.push(message))
      seen.perform = (action, data) => channel.perform(action, data)
      seen.unsubscribe = () => channel.disconnect()
      return seen
    },
    close: () => cable.disconnect(),
    isClosed: () => cable.state === 'closed'
  }
}

export const CLIENTS = { '@rails/actioncable': rails, '@anycable/core': anycable }

export const connected = (seen, times = 1) => eventually(`connected ${times} times`, () => seen.connected >= times)
export const has = (seen, count) => eventually(`${count} messages`, () => seen.messages.length >= count)
