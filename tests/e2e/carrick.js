// A Carrick process of a test's own, and what a test says to it over HTTP.

import { spawn } from 'node:child_process'
import { mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

/** How long anything that must happen may take. Generous: the machine may be busy with other tests. */
export const PATIENCE = 20_000

export const sleep = ms => new Promise(resolve => setTimeout(resolve, ms))

/** Polls until `probe` answers something true. */
export async function eventually(what, probe) {
  const deadline = Date.now() + PATIENCE
  for (;;) {
    const answer = await probe()
    if (answer) return answer
    if (Date.now() > deadline) throw new Error(`waited in vain: ${what}`)
    await sleep(20)
  }
}

/** The server under test: `CARRICK_BIN`, or what `cargo build` has built. */
const BINARY = process.env.CARRICK_BIN ?? fileURLToPath(new URL('../../target/debug/carrick', import.meta.url))

const KEY = 'e2e-broadcast-key'

/** Everything a server needs to keep its store through restarts: the README's way to run it. */
export const DURABLE = ['--broker=nats', '--embed_nats', '--enats_addr=nats://127.0.0.1:-1', '--enats_store_dir=store']
export const MEMORY = ['--broker=memory']

/** Everybody may connect and follow any stream. */
const OPEN = ['--noauth', '--public_streams']

export class Carrick {
  #options
  #access
  #folder = mkdtempSync(join(tmpdir(), 'carrick-e2e-'))
  #process
  #port = 0
  #failure

  /** `access`: options that say who decides about clients. */
  constructor(options = DURABLE, access = OPEN) {
    this.#options = options
    this.#access = access
  }

  static async start(options, access) {
    const server = new Carrick(options, access)
    await server.start()
    return server
  }

  /** Starts (again) on the same port and store and waits until it is ready. */
  async start() {
    const portFile = join(this.#folder, 'ports.json')
    rmSync(portFile, { force: true })
    const log = openSync(this.#logFile, 'a')
    const common = ['--host=127.0.0.1', `--port=${this.#port}`, `--port_file=${portFile}`, '--ping_interval=1']
    const access = [...this.#access, `--broadcast_key=${KEY}`]
    this.#process = spawn(BINARY, [...common, ...access, ...this.#options], {
      cwd: this.#folder,
      stdio: ['ignore', log, log]
    })
    // Nothing outlives the test run.
    const child = this.#process
    process.once('exit', () => child.kill('SIGKILL'))
    this.#process.on('error', error => (this.#failure = error))
    try {
      const bound = await eventually('carrick listens', () => this.#bound(portFile))
      this.#port = Number(bound.http.split(':').at(-1))
      await eventually('carrick is ready', async () => (await this.get('/ready'))?.status === 200)
    } catch (error) {
      throw new Error(`${error.message}\n${this.log()}`)
    }
  }

  #bound(portFile) {
    if (this.#failure) throw this.#failure
    if (this.#process.exitCode !== null) throw new Error(`carrick ended with ${this.#process.exitCode}`)
    try {
      return JSON.parse(readFileSync(portFile, 'utf8'))
    } catch {
      return undefined // not there yet
    }
  }

  get #logFile() {
    return join(this.#folder, 'carrick.log')
  }

  log() {
    return readFileSync(this.#logFile, 'utf8').split('\n').slice(-40).join('\n')
  }

  get url() {
    return `ws://127.0.0.1:${this.#port}/cable`
  }

  async get(path) {
    try {
      return await fetch(`http://127.0.0.1:${this.#port}${path}`)
    } catch {
      return undefined // nobody listens
    }
  }

  /** A counter or gauge, by the end of its name. */
  async metric(name) {
    const answer = await this.get('/metrics')
    const line = (await answer.text()).split('\n').find(line => !line.startsWith('#') && line.split(' ')[0].endsWith(name))
    return Number(line.split(' ').at(-1))
  }

  async #post(body) {
    return fetch(`http://127.0.0.1:${this.#port}/_broadcast`, {
      method: 'POST',
      headers: { Authorization: `Bearer ${KEY}` },
      body: JSON.stringify(body)
    })
  }

  /** Publishes one message, which must be accepted; its position. */
  async publish(stream, message) {
    const answer = await this.#post({ stream, data: JSON.stringify(message) })
    if (answer.status !== 201) throw new Error(`${answer.status} ${await answer.text()}`)
    return answer.json()
  }

  /** Publishes `{n: from}` to `{n: to}`. */
  async publishNumbers(stream, from, to) {
    for (let n = from; n <= to; n++) await this.publish(stream, { n })
  }

  /** Closes every session with these connection identifiers. */
  async disconnect(identifier, reconnect) {
    const answer = await this.#post({ command: 'disconnect', payload: { identifier, reconnect } })
    if (answer.status !== 201) throw new Error(`${answer.status} ${await answer.text()}`)
  }

  /** Ends it as a crash would. */
  kill() {
    return this.#end('SIGKILL')
  }

  /** Stops it gracefully. */
  stop() {
    return this.#end('SIGTERM')
  }

  async #end(signal) {
    if (this.#failure || this.#process.exitCode !== null || this.#process.signalCode !== null) return
    const gone = new Promise(resolve => this.#process.once('exit', resolve))
    this.#process.kill(signal)
    await gone
  }

  /** Forgets everything it has stored; it must not run. */
  wipe() {
    rmSync(join(this.#folder, 'store'), { recursive: true, force: true })
  }

  /** Stops it and removes its folder. */
  async dispose() {
    await this.stop()
    rmSync(this.#folder, { recursive: true, force: true })
  }
}
