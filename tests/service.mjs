// The service's page, used as somebody would: the token, an image chosen by keyboard, the gate maps' switch and slider,
// a dropped image, the camera, a file that is not an image, a selection of many, the answers as CSV, a service that stops.
import { check } from './browser.mjs'
import fs from 'node:fs'

const { IMAGE, PHOTO, NO_IMAGE, MANY, LABEL, TOKEN } = process.env

await check(async ({ page, say, width, scheme, shoot, judge }) => {
  const expect = async (what, check, ...args) => {
    try {
      await page.waitForFunction(check, { timeout: 20000, polling: 50 }, ...args)
    } catch {
      say(`${what}: ${await page.$eval('#status', (e) => e.innerText)}`)
    }
  }
  const cards = (n) =>
    expect(
      `${n} cards`,
      (n) => document.querySelectorAll('article').length === n && !document.querySelector('[aria-busy]'),
      n,
    )

  await expect('asks for the token', () => document.activeElement.id === 'token')
  await shoot('token')
  await page.keyboard.type('not the token at all')
  await page.keyboard.press('Enter')
  await expect('says that the token is wrong', () => /not know/.test(document.querySelector('#status').innerText))
  await page.keyboard.type(TOKEN)
  await page.keyboard.press('Enter')
  await expect('opens the desk', () => document.activeElement.id === 'files')
  await shoot('empty')

  await page.evaluate(() =>
    document.querySelector('#files').addEventListener(
      'click',
      (e) => {
        e.preventDefault()
        e.target.dataset.opened = true
      },
      { once: true },
    ),
  )
  await page.keyboard.press('Space')
  await expect('the key opens the files', () => document.querySelector('#files').dataset.opened)
  const choose = async (...files) => (await page.$('#files')).uploadFile(...files)
  await choose(IMAGE)
  await cards(1)
  await expect('names the class', (label) => document.querySelector('.classes li .label').innerText === label, LABEL)
  await expect('says it aloud', (label) => document.querySelector('#status').innerText.includes(label), LABEL)
  const bars = await page.$$eval('.bar span', (all) => all.map((b) => b.getBoundingClientRect().width))
  if (bars.length !== 5 || !bars.every((b, i) => b >= 0 && (!i || b <= bars[i - 1]))) say(`bars of ${bars}`)

  const heat = () =>
    page.$$eval('.heat', (all) =>
      all
        .filter((h) => !h.hidden && h.getBoundingClientRect().width > 20)
        .map((h) => [h.dataset.gate, h.naturalWidth > 0, Number(h.style.opacity)]),
    )
  const same = async (what, want) => {
    const got = JSON.stringify(await heat())
    if (got !== JSON.stringify(want)) say(`${what}: ${got}`)
  }
  await same('the image first', [])
  const maps = () => page.$$eval('.heat', (all) => all.length)
  if (await maps()) say('maps are there that nobody asked for')
  await page.focus('[value=none]')
  await page.keyboard.press('ArrowDown')
  const both = (n) => expect(`maps of ${n} images`, (n) => document.querySelectorAll('.heat').length === n, 2 * n)
  await both(1)
  const shares = await page.evaluate(() =>
    ['squish', 'crop', 'pad'].map((method) => {
      const kept = { ...about }
      Object.assign(about, { method, resize: [80, 80], size: [64, 64] })
      try {
        return visibleShares(200, 100).map((s) => s.toFixed(2))
      } finally {
        Object.assign(about, kept)
      }
    }),
  )
  if (JSON.stringify(shares) !== '[["0.80","0.80"],["0.40","0.80"],["0.80","1.60"]]')
    say(`the map covers ${JSON.stringify(shares)}`)
  await page.waitForFunction(() => document.querySelector('.heat:not([hidden])')?.naturalWidth)
  const [first] = (await heat()).map(([gate]) => gate)
  const second = { EMA: 'SimAM', SimAM: 'EMA' }[first]
  await same('the first gate by the arrow key', [[first, true, 0.6]])
  const scale = await page.$eval('figcaption:not([hidden])', (e) => e.innerText)
  if (!/^(EMA|SimAM): 0\.\d\d to 0\.\d\d on 0\s*1$/.test(scale)) say(`the scale: ${scale}`)
  await page.keyboard.press('ArrowDown')
  await same('the second', [[second, true, 0.6]])
  await page.focus('#strength')
  await page.keyboard.press('Home')
  await same('the slider at its end', [[second, true, 0]])
  await page.$eval('#strength', (s) => {
    s.value = 60
    s.dispatchEvent(new Event('input', { bubbles: true }))
  })
  await shoot('map')
  await page.focus(`[value=${second}]`)
  await page.keyboard.press('ArrowDown')
  await same('none', [])
  await page.click('.view')
  await expect('a click enlarges', () => document.querySelector('article.open [aria-expanded=true]'))
  await page.click('.view')

  if (width > 1000 !== (scheme === 'light')) return shoot('one') // the rest once on the desktop, once on the phone

  await page.evaluate(async (name) => {
    const image = document.querySelector('.image'),
      data = new DataTransfer(),
      canvas = document.createElement('canvas')
    canvas.width = image.naturalWidth
    canvas.height = image.naturalHeight
    canvas.getContext('2d').drawImage(image, 0, 0)
    data.items.add(new File([await new Promise((done) => canvas.toBlob(done))], name, { type: 'image/png' }))
    document.dispatchEvent(new DragEvent('drop', { dataTransfer: data, bubbles: true, cancelable: true }))
  }, '<img src=x onerror=alert(1)>.png')
  await cards(2)
  await page.focus('#camera')
  await page.keyboard.press('Enter')
  await expect(
    'the camera runs',
    () => document.querySelector('#viewfinder').open && document.querySelector('#video').videoWidth > 0,
  )
  await page.keyboard.press('Enter')
  await cards(3)
  await expect(
    'the camera is off again',
    () => !document.querySelector('#viewfinder').open && !document.querySelector('#video').srcObject,
  )
  await choose(NO_IMAGE, PHOTO)
  await cards(5)
  await expect('counts', () => document.querySelector('#count').innerText === '4 of 5 read')
  await expect('says what is not an image', () => [...document.querySelectorAll('article .wrong')].length === 1)
  await shoot('full')

  const many = fs.readdirSync(MANY).sort()
  await page.evaluate(() => {
    const seen = (window.seen = [])
    for (const e of [document.querySelector('#status'), document.querySelector('#count')])
      new MutationObserver(() => seen.push(e.textContent)).observe(e, { childList: true })
  })
  await choose(...many.map((f) => `${MANY}/${f}`))
  await cards(25)
  await expect(
    'says how many were classified',
    () =>
      document.querySelector('#status').innerText === '20 of 20 images were read' &&
      document.querySelector('#count').innerText === '24 of 25 read',
  )
  const progress = await page.evaluate(() => window.seen)
  for (const text of ['Reading … 16 of 20', 'Reading … 20 of 25 read'])
    if (!progress.includes(text)) say(`says how far it is: ${progress}`)
  const tall = await page.$eval('#results', (e) => e.getBoundingClientRect().height)
  if (tall > (width > 1000 ? 4000 : 9000)) say(`25 cards of ${tall} pixels`)
  await shoot('many')
  await judge()
  const names = await page.$$eval('article h2', (all) => all.map((h) => h.innerText))
  if (String(names.slice(0, 20)) !== String(many)) say(`in their order: ${names}`)
  await choose(NO_IMAGE)
  await cards(26)
  await expect(
    'one that is not an image has a card too',
    () =>
      document.querySelector('article .wrong').innerText.includes('broken.png') &&
      document.querySelector('#status').innerText.includes('broken.png'),
  )

  const rows = (await page.evaluate(() => csv())).trim().split('\n')
  if (rows.length !== 27 || !rows[0].startsWith('item,label,prob,label1,prob1,label2') || !rows[1].startsWith('broken.png,,,'))
    say(`CSV of ${rows.length} rows: ${rows.slice(0, 2)}`)
  await page.evaluate(() => {
    const create = URL.createObjectURL
    URL.createObjectURL = (blob) => {
      window.saved = blob.type
      URL.createObjectURL = create
      return create.call(URL, blob)
    }
  })
  await page.click('#csv')
  await expect('the CSV is saved', () => window.saved === 'text/csv')
  await page.click('.remove')
  await cards(25)
  await page.click('[value=EMA]')
  await both(24)
  await page.click('[value=none]')
  await page.click('#clear')
  await cards(0)
  await expect('nothing is left', () => document.querySelector('#tools').hidden)

  await page.click('.more details:nth-child(1) summary')
  await page.click('.more details:nth-child(2) summary')
  const curl = await page.$eval('#curl', (e) => e.innerText)
  if (!curl.startsWith('curl -H "Authorization: Bearer $SIMAM_EMA_TOKEN" -F files=@')) say(`curl: ${curl}`)
  if ((await page.$$eval('#classes li', (all) => all.length)) !== 10) say('the classes are not listed')
  await shoot('details')
  await judge()
  await page.click('#copy')
  await expect('says that it is copied', () => /^(Copied|It is selected)/.test(document.querySelector('#status').innerText))

  await page.setOfflineMode(true)
  await choose(PHOTO, IMAGE)
  await cards(1)
  await expect('says that the service was stopped', () => /it was stopped/.test(document.querySelector('.wrong:not([hidden])').innerText))
  await shoot('stopped')
  await page.setOfflineMode(false)
  await page.click('article .plain')
  await cards(2)
  await expect('sent again', () => document.querySelector('#count').innerText === '2 of 2 read')

  await page.goto(new URL('docs', page.url()).href)
  await expect('the requests are described', () => document.querySelectorAll('main section').length > 8)
  await shoot('docs')
}, /status of (401|422)|ERR_INTERNET_DISCONNECTED/)
