// The page of a training refreshes itself, without being loaded again.

const statusLine = document.getElementById('live')
const hold = document.getElementById('hold')
let seen = document.body.dataset.stamp
let held = false
let updating = false

function say(text) {
  if (statusLine.textContent !== text) statusLine.textContent = text
}

hold.addEventListener('click', () => {
  held = !held
  hold.textContent = held ? 'Resume' : 'Pause'
  say(held ? 'Paused.' : 'Live.')
})

async function refresh() {
  const page = new DOMParser().parseFromString(await (await fetch('.')).text(), 'text/html')
  const open = [...document.querySelectorAll('details')].map(d => d.open)
  const top = scrollY
  const focused = document.activeElement?.id
  for (const part of ['header', 'main', 'body > nav']) document.querySelector(part).replaceWith(page.querySelector(part))
  document.title = page.title
  document.querySelectorAll('details').forEach((d, i) => { d.open = open[i] ?? false })
  makeSortable()
  scrollTo({ top, behavior: 'instant' })
  document.getElementById(focused)?.focus()
  seen = page.body.dataset.stamp // older than the files if they could not be read: asked for again
}

async function update() {
  if (held || updating) return
  updating = true
  try {
    const now = await (await fetch('stamp')).json()
    if (now.stamp !== seen) await refresh()
    say(now.text)
  } catch {
    const report = document.body.dataset.report
    say(`The training has ended or its machine is out of reach: this is the last that was seen. Its report is ${report}.`)
  }
  updating = false
}

setInterval(update, 3000)
update()
