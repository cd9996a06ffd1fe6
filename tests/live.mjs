// Opens the live page of a training in Chromium, watches it change without being loaded again, until the training is over
// in the way that is expected.
// node live.mjs URL CHROMIUM MODULES [SCREENSHOTS]: prints as JSON what it saw. UNTIL: the state at which it is over
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import fs from 'node:fs'

const [url, executablePath, modules, shots] = process.argv.slice(2)
const until = (process.env.UNTIL ?? 'done').split(',')
const require = createRequire(modules + '/')
const { default: puppeteer } = await import(pathToFileURL(require.resolve('puppeteer-core')))
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const browser = await puppeteer.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] })
const page = await browser.newPage()
const wrong = []
const seen = { texts: [], titles: [], headings: [], orders: [], active: [] }
page.on('pageerror', (e) => wrong.push(e.message))
page.on('console', (m) => {
  if (m.type() === 'error' && !m.text().includes('net::ERR_')) wrong.push(m.text())
})
await page.setViewport({ width: 1440, height: 900 })
const start = Date.now()
await page.goto(url, { timeout: 120000 })
const opened = Date.now() - start
await page.evaluate(() => (window.notReloaded = true))

const check = async (when) => {
  await page.evaluate(axe)
  for (const [width, scheme] of [[1440, 'light'], [1024, 'dark'], [390, 'light'], [390, 'dark']]) {
    await page.setViewport({ width, height: 900 })
    await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
    const wide = await page.evaluate(() => document.documentElement.scrollWidth)
    if (wide > width) wrong.push(`${when}: ${wide} pixels wide at ${width}`)
    for (const v of (await page.evaluate(() => axe.run())).violations)
      wrong.push(`${when}, ${width} ${scheme}: axe ${v.id}: ${v.nodes[0].html.slice(0, 120)}`)
    if (shots) await page.screenshot({ path: `${shots}-${when}-${width}-${scheme}.png`, fullPage: true })
  }
  await page.setViewport({ width: 1440, height: 900 })
  await page.emulateMediaFeatures([])
}

let checked = false
let now = {}
for (const end = Date.now() + 240000; Date.now() < end;) {
  now = await page.evaluate(() => {
    const all = (selector) => [...document.querySelectorAll(selector)].map((e) => e.innerText)
    return {
      state: document.querySelector('#bar').dataset.state,
      text: document.querySelector('#live').innerText,
      title: document.title,
      headings: all('h1, h2'),
      order: all('#runs .name').join(' '),
      active: all('#runs .active .name').join(' '),
    }
  })
  for (const [list, item] of [['texts', now.text], ['titles', now.title], ['orders', now.order], ['active', now.active]])
    if (seen[list].at(-1) !== item) seen[list].push(item)
  seen.headings = [...new Set([...seen.headings, ...now.headings])]
  if (now.active && !checked) {
    checked = true
    await check('training')
    fs.writeSync(2, 'training\n') // for whoever waits for it
  }
  if (until.includes(now.state) && (now.state !== 'done' || now.headings.includes('All variants'))) break
  await new Promise((done) => setTimeout(done, 200))
}
await check('end')
console.log(
  JSON.stringify({
    ...seen,
    wrong,
    opened,
    state: now.state,
    notReloaded: await page.evaluate(() => window.notReloaded === true),
    again: await page.evaluate(() => !document.querySelector('#again').hidden && document.querySelector('#command').innerText),
    link: await page.evaluate(async () => !document.querySelector('#open').hidden && (await fetch('report.html')).status),
  }),
)
await browser.close()
