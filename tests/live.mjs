// Opens the live page of a training in Chromium, watches it change without being loaded again, until the training is over.
// node live.mjs URL CHROMIUM MODULES [SCREENSHOTS]: prints as JSON what it saw
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import fs from 'node:fs'

const [url, executablePath, modules, shots] = process.argv.slice(2)
const require = createRequire(modules + '/')
const { default: puppeteer } = await import(pathToFileURL(require.resolve('puppeteer-core')))
const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
const browser = await puppeteer.launch({ executablePath, args: ['--no-sandbox', '--disable-gpu'] })
const page = await browser.newPage(), wrong = [], status = [], headings = new Set()
let ended = false
page.on('pageerror', e => wrong.push(e.message))
page.on('console', m => { if (!ended && m.type() === 'error' && !m.text().includes('net::ERR_')) wrong.push(m.text()) })
await page.setViewport({ width: 1440, height: 900 })
await page.goto(url, { timeout: 120000 })
await page.evaluate(() => { window.notReloaded = true })
for (const end = Date.now() + 240000; Date.now() < end && !ended;) {
  await new Promise(done => setTimeout(done, 500))
  const now = await page.evaluate(() => ({ status: document.getElementById('live').textContent, h1: document.querySelector('h1').textContent, sections: [...document.querySelectorAll('h2')].map(h => h.textContent) }))
  if (status.at(-1) !== now.status) {
    status.push(now.status)
    if (shots) await page.screenshot({ path: `${shots}-${status.length}.png` })
  }
  for (const h of [now.h1, ...now.sections]) headings.add(h)
  ended = now.status.includes('has ended')
}
await page.evaluate(axe)
for (const v of (await page.evaluate(() => axe.run())).violations) if (['serious', 'critical'].includes(v.impact)) wrong.push(`axe ${v.id}: ${v.nodes[0].html.slice(0, 120)}`)
console.log(JSON.stringify({ wrong, status, headings: [...headings], notReloaded: await page.evaluate(() => window.notReloaded === true), wide: await page.evaluate(() => document.documentElement.scrollWidth) }))
await browser.close()
