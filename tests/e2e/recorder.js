// A WebSocket for the stock clients that remembers what went over it and can lose its connection.

import WebSocket from 'ws'

/** A class of its own per client, so that each client has its own record. `headers` go with its handshakes. */
export function recorder(headers = {}) {
  return class Recorder extends WebSocket {
    static sockets = []
    /** Commands that the client sent, over all its connections. */
    static sent = []
    /** Frames that the server sent, over all its connections. */
    static received = []

    constructor(url, protocols, options = {}) {
      super(url, protocols, { ...options, headers: { ...options.headers, ...headers } })
      Recorder.sockets.push(this)
      this.on('message', data => Recorder.received.push(JSON.parse(data)))
    }

    send(data, ...rest) {
      Recorder.sent.push(JSON.parse(data))
      super.send(data, ...rest)
    }

    /** Loses the present connection without a word. */
    static drop() {
      Recorder.sockets.at(-1).terminate()
    }

    /** Commands of one kind. */
    static commands(name) {
      return Recorder.sent.filter(frame => frame.command === name)
    }

    /** Frames of one type. */
    static frames(type) {
      return Recorder.received.filter(frame => frame.type === type)
    }
  }
}
