// The page of a training asks every two seconds how far it is, and shows the report below its runs once there is one.

const $ = id => document.getElementById(id)
const me = Math.random().toString(36).slice(2)
const marks = { waiting: '○', active: '●', finished: '✓', failed: '✕', interrupted: '‖' }
let last = null // what the server said last
let shown = '' // the fingerprint of the report that is shown
let held = false
let asking = false
let misses = 0

function make(tag, className, text = '') {
  return Object.assign(document.createElement(tag), { className, textContent: text })
}

function say(id, text) {
  if ($(id).textContent !== text) $(id).textContent = text
}

// --- the runs

function inWords(run) {
  const { state, epochs, accuracy } = run
  if (state === 'active') return accuracy.length < epochs ? `epoch ${accuracy.length + 1} of ${epochs}` : 'is evaluated'
  return state === 'interrupted' ? `after ${accuracy.length} of ${epochs} epochs` : state
}

// The accuracy epoch by epoch, on one scale for all runs.
function curve(run, low, high) {
  const svg = document.createElementNS('http://www.w3.org/2000/svg', 'svg')
  svg.setAttribute('viewBox', '0 0 100 20')
  svg.setAttribute('preserveAspectRatio', 'none')
  svg.setAttribute('aria-hidden', 'true')
  if (run.accuracy.length < 2) return svg
  const line = document.createElementNS(svg.namespaceURI, 'polyline')
  const x = i => 100 * i / Math.max(1, run.epochs - 1)
  const y = value => 19 - 18 * (value - low) / Math.max(1e-9, high - low)
  const points = run.accuracy.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`)
  const look = { points: points.join(' '), fill: 'none', stroke: 'currentColor', 'stroke-width': 2 }
  for (const [k, v] of Object.entries({ ...look, 'vector-effect': 'non-scaling-stroke' })) line.setAttribute(k, v)
  svg.append(line)
  return svg
}

function row(run, low, high) {
  const { state, accuracy } = run
  const item = make('li', state)
  if (state === 'active') item.setAttribute('aria-current', 'step')
  const mark = make('span', 'mark', marks[state])
  mark.setAttribute('aria-hidden', 'true')
  const bar = Object.assign(make('progress', ''), { max: run.epochs, value: accuracy.length })
  bar.setAttribute('aria-label', `epochs of ${run.run}`)
  item.append(mark, make('span', 'name', run.run), make('span', 'state', inWords(run)), bar, curve(run, low, high))
  item.append(make('span', 'value', accuracy.length ? `${accuracy.at(-1).toFixed(1)} %` : ''))
  if (run.error) item.append(make('span', 'error', run.error))
  return item
}

function showRuns(runs) {
  const list = $('runs')
  const all = runs.flatMap(run => run.accuracy)
  list.replaceChildren(...runs.map(run => row(run, Math.min(...all), Math.max(...all))))
  list.hidden = !runs.length
  const active = list.querySelector('.active')
  if (active) list.scrollTop = active.offsetTop - list.offsetTop - list.clientHeight / 2
}

// --- the report

async function showReport(stamp) {
  const answer = await fetch('report')
  if (!answer.ok) return
  const report = new DOMParser().parseFromString(await answer.text(), 'text/html')
  for (const part of report.querySelectorAll('#progress, li:has(> a[href="#progress"])')) part.remove()
  const open = [...document.querySelectorAll('details')].map(d => d.open)
  const top = scrollY
  const focused = document.activeElement?.id
  for (const part of ['header', 'main', 'body > nav']) {
    document.querySelector(part).replaceWith(report.querySelector(part))
  }
  document.querySelectorAll('details').forEach((d, i) => { d.open = open[i] ?? false })
  makeSortable()
  scrollTo({ top, behavior: 'instant' })
  document.getElementById(focused)?.focus()
  shown = stamp
}

// --- how far it is

function title(now) {
  const asked = now.runs.filter(run => run.planned)
  const done = asked.reduce((n, run) => n + (run.state === 'finished' ? run.epochs : run.accuracy.length), 0)
  const percent = Math.floor(100 * done / (asked.reduce((n, run) => n + run.epochs, 0) || 1))
  const words = { waiting: 'Waiting', training: `${percent} %`, done: 'Done', failed: 'Failed' }
  return `${words[now.state] ?? 'Stopped'} – ${now.name}`
}

function show(now) {
  $('bar').dataset.state = now.state
  say('live', now.text)
  say('left', now.left)
  say('note', now.note)
  say('command', now.command)
  $('again').hidden = !now.command || !['failed', 'stopped', 'lost'].includes(now.state)
  $('open').hidden = !now.file || now.state === 'lost'
  if (!shown) say('about', now.about)
  document.title = title(now)
  if (JSON.stringify(now.runs) !== JSON.stringify(last?.runs)) showRuns(now.runs)
}

// The server is gone: with the training, or some time after it.
function lost() {
  if (!last || last.state === 'closed' || last.state === 'lost') return
  const over = !['training', 'waiting'].includes(last.state)
  const file = last.file && ` The report is ${last.file}.`
  const text = over ? `${last.text} This page is no longer served.${file}`
    : `The training was interrupted, or its machine is out of reach. What was saved is not lost.${file}`
  const state = over ? last.state : 'lost'
  show({ ...last, left: '', note: '', file: '', state, text })
  last = { ...last, state: over ? 'closed' : 'lost' }
}

async function ask() {
  if (held || asking) return
  asking = true
  try {
    const now = await (await fetch(`state?page=${me}`)).json()
    misses = 0
    show(now)
    last = now
    if (now.report && now.report !== shown) await showReport(now.report)
  } catch {
    misses += 1
    if (misses > 1) lost()
  }
  asking = false
}

$('hold').addEventListener('click', () => {
  held = !held
  $('hold').textContent = held ? 'Resume' : 'Pause'
  if (held) say('live', 'Paused.')
  else ask()
})
setInterval(ask, 2000)
ask()
