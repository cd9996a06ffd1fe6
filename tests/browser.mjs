// What the checks of pages share: Chromium at the widths of a desktop and a phone, in light and dark, and a list of what is
// wrong, printed as JSON.
// node CHECK.mjs PAGE CHROMIUM MODULES [SCREENSHOTS]: PAGE is a file or a URL, MODULES a node_modules with puppeteer-core and
// axe-core
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import fs from 'node:fs'

export const check = async (visit, expected = /^$/) => {
  // `expected`: what the console may say
  const [target, executablePath, modules, shots] = process.argv.slice(2)
  const require = createRequire(modules + '/')
  const { default: puppeteer } = await import(pathToFileURL(require.resolve('puppeteer-core')))
  const axe = fs.readFileSync(require.resolve('axe-core/axe.min.js'), 'utf8')
  const home = /^http:/.test(target) ? target : pathToFileURL(target).href
  const wrong = []
  const browser = await puppeteer.launch({
    executablePath,
    args: ['--no-sandbox', '--disable-gpu', '--use-fake-ui-for-media-stream', '--use-fake-device-for-media-stream'],
  })
  for (const [width, height] of [
    [1440, 900],
    [390, 844],
  ])
    for (const scheme of ['light', 'dark']) {
      const say = (text) => wrong.push(`${width} ${scheme}: ${text}`)
      const page = await browser.newPage()
      page.on('console', (m) => {
        if (!expected.test(m.text())) say(`console ${m.type()}: ${m.text()}`)
      })
      page.on('pageerror', (e) => say(`error: ${e.message}`))
      page.on('request', (r) => {
        if (!/^(file|data|blob):/.test(r.url()) && new URL(r.url()).origin !== new URL(home).origin)
          say(`fetches ${r.url()}`)
      })
      await page.setViewport({ width, height })
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }])
      await page.goto(home)
      const judge = async () => {
        const seen = await page.evaluate(() => document.documentElement.scrollWidth)
        if (seen > width) say(`is ${seen} pixels wide`)
        await page.evaluate(axe)
        const { violations } = await page.evaluate(() => axe.run())
        for (const v of violations)
          if (!expected.test(`axe ${v.impact}`)) say(`axe ${v.id}: ${v.nodes[0].html.slice(0, 120)}`)
      }
      await visit({
        page,
        say,
        judge,
        width,
        height,
        scheme,
        shoot: (name) => shots && page.screenshot({ path: `${shots}${name}-${width}-${scheme}.png`, fullPage: true }),
      })
      await judge()
      await page.close()
    }
  await browser.close()
  console.log(JSON.stringify(wrong))
}
