// Follows a stream with the stock @anycable/core client and prints what it gets: node follow.mjs STREAM [URL]
import { createCable, Channel } from '@anycable/core'
import WebSocket from 'ws'

const [stream = 'chat/42', url = 'ws://localhost:8080/cable'] = process.argv.slice(2)

const cable = createCable(url, {
  protocol: 'actioncable-v1-ext-json',
  websocketImplementation: WebSocket,
  historyTimestamp: Math.floor(Date.now() / 1000),
})

class Stream extends Channel {
  static identifier = '$pubsub'
}

const channel = new Stream({ stream_name: stream })
channel.on('connect', ({ reconnect, restored }) => console.log(restored ? '-- session restored' : reconnect ? '-- subscribed again' : '-- subscribed'))
channel.on('message', (message, meta) => console.log(meta?.offset ?? '-', JSON.stringify(message)))
channel.on('info', ({ type }) => console.log(`-- ${type}`))
cable.subscribe(channel)
