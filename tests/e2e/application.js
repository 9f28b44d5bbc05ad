// The Python application as a process of a test's own, and what it was asked.

import { execFileSync, spawn } from 'node:child_process'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { eventually } from './carrick.js'

const path = name => fileURLToPath(new URL(name, import.meta.url))

/** A Python with gRPC; made by the first run on a machine. */
const python = () => execFileSync(path('../../scripts/e2e-python'), { encoding: 'utf8' }).trim()

export class Application {
  #python = python()
  #process
  #port = 0
  #errors = ''
  /** Calls of all its lives, as it has told them. */
  said = []

  static async start() {
    const application = new Application()
    await application.start()
    return application
  }

  /** Starts (again) on the same port; it listens when this returns. */
  async start() {
    const child = spawn(this.#python, [path('application.py'), String(this.#port)], { stdio: 'pipe' })
    this.#process = child
    child.stderr.on('data', text => (this.#errors += text))
    let listens = false
    createInterface({ input: child.stdout }).on('line', line => {
      const said = JSON.parse(line)
      if (said.port) {
        this.#port = said.port
        listens = true
      } else {
        this.said.push(said)
      }
    })
    await eventually('the application listens', () => {
      if (child.exitCode !== null) throw new Error(`the application ended with ${child.exitCode}: ${this.#errors}`)
      return listens
    })
  }

  /** Where Carrick finds it. */
  get access() {
    return [`--rpc_host=127.0.0.1:${this.#port}`, '--headers=cookie,x-api-token']
  }

  /** Ends it as a crash would. */
  async kill() {
    const child = this.#process
    if (child.exitCode !== null || child.signalCode !== null) return
    const gone = new Promise(resolve => child.once('exit', resolve))
    child.kill('SIGKILL')
    await gone
  }

  /** Forgets what it was asked so far. */
  forget() {
    this.said.length = 0
  }

  /** Calls of a method. */
  calls(method) {
    return this.said.filter(said => said.method === method)
  }

  commands(command) {
    return this.said.filter(said => said.command === command)
  }

  /** Disconnect calls about a user, once there is one. */
  async left(user) {
    const about = () => this.said.filter(said => said.left?.user === user)
    await eventually(`${user} left`, () => about().length > 0)
    return about()
  }
}
