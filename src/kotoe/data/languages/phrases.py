"""The phrases of the languages that `plain.py` makes tables of. Written by us, not yet read by native speakers.

A block a language, an empty line between two; a line that begins with spaces goes on with the one before it:

    tag, and how one of two objects is said to be at its side: {x} the object, {p} the side
    the background, {} the colour
    white, black, red, orange, yellow, green, light blue, blue, purple, pink, brown, grey
    in the centre, at the top left, top, top right, left, right, bottom left, bottom, bottom right
    small size, large size
    picture

Items are parted by commas, wordings of one item by slashes; the first wording is what evaluation says. No phrase is
inflected by what stands beside it: colours agree with the word for background, and everything else stands alone.
"""

PHRASES = """
af {x} {p}
{} agtergrond
wit, swart, rooi, oranje, geel, groen, ligblou, blou, pers, pienk, bruin, grys
in die middel, links bo, bo, regs bo, links / aan die linkerkant, regs / aan die regterkant, links onder, onder,
  regs onder
klein formaat, groot formaat
prent / tekening

am {p} {x}
{} ዳራ
ነጭ, ጥቁር, ቀይ, ብርቱካናማ, ቢጫ, አረንጓዴ, ፈዛዛ ሰማያዊ, ሰማያዊ, ሐምራዊ, ሮዝ, ቡናማ, ግራጫ
በመሃል, ከላይ በግራ, ከላይ, ከላይ በቀኝ, በግራ, በቀኝ, ከታች በግራ, ከታች, ከታች በቀኝ
ትንሽ መጠን, ትልቅ መጠን
ምስል / ሥዕል

ar {x} {p}
خلفية {}
بيضاء, سوداء, حمراء, برتقالية, صفراء, خضراء, زرقاء فاتحة / سماوية, زرقاء, بنفسجية / أرجوانية, وردية / زهرية, بنية,
  رمادية
في الوسط / في المنتصف, في أعلى اليسار, في الأعلى, في أعلى اليمين, على اليسار, على اليمين, في أسفل اليسار, في الأسفل,
  في أسفل اليمين
حجم صغير, حجم كبير
صورة / رسم

az {p} {x}
{} fon
ağ, qara, qırmızı, narıncı, sarı, yaşıl, açıq mavi, mavi, bənövşəyi, çəhrayı, qəhvəyi, boz
ortada / mərkəzdə, yuxarı solda, yuxarıda, yuxarı sağda, solda, sağda, aşağı solda, aşağıda, aşağı sağda
kiçik ölçü, böyük ölçü
şəkil / rəsm

be {x} {p}
{} фон
белы, чорны, чырвоны, аранжавы, жоўты, зялёны, блакітны / светла-сіні, сіні, фіялетавы, ружовы, карычневы, шэры
у цэнтры / пасярэдзіне, уверсе злева, уверсе, уверсе справа, злева, справа, унізе злева, унізе, унізе справа
маленькі памер, вялікі памер
малюнак / выява

bg {x} {p}
{} фон
бял, черен, червен, оранжев, жълт, зелен, светлосин, син, лилав, розов, кафяв, сив
в центъра / в средата, горе вляво, горе, горе вдясно, вляво / отляво, вдясно / отдясно, долу вляво, долу, долу вдясно
малък размер, голям размер
изображение / рисунка

bn {p} {x}
{} পটভূমি / {} রঙের পটভূমি
সাদা, কালো, লাল, কমলা, হলুদ, সবুজ, হালকা নীল / আকাশি, নীল, বেগুনি, গোলাপি, বাদামি, ধূসর
মাঝখানে, উপরে বাঁ দিকে, উপরে, উপরে ডান দিকে, বাঁ দিকে / বামে, ডান দিকে / ডানে, নিচে বাঁ দিকে, নিচে, নিচে ডান দিকে
ছোট আকার, বড় আকার
ছবি / চিত্র

ca {x} {p}
fons {}
blanc, negre, vermell, taronja, groc, verd, blau clar / blau cel, blau, lila / morat, rosa, marró, gris
al centre / al mig, a dalt a l'esquerra, a dalt, a dalt a la dreta, a l'esquerra, a la dreta, a baix a l'esquerra,
  a baix, a baix a la dreta
mida petita, mida gran
imatge / dibuix

cs {x} {p}
{} pozadí
bílé, černé, červené, oranžové, žluté, zelené, světle modré / bleděmodré, modré, fialové, růžové, hnědé, šedé
uprostřed, vlevo nahoře, nahoře, vpravo nahoře, vlevo, vpravo, vlevo dole, dole, vpravo dole
malá velikost, velká velikost
obrázek / kresba

cy {x} {p}
cefndir {}
gwyn, du, coch, oren, melyn, gwyrdd, glas golau, glas, porffor / piws, pinc, brown, llwyd
yn y canol, yn y gornel chwith uchaf, ar y brig, yn y gornel dde uchaf, ar y chwith, ar y dde,
  yn y gornel chwith isaf, ar y gwaelod, yn y gornel dde isaf
maint bach, maint mawr
llun / darlun

da {x} {p}
{} baggrund
hvid, sort, rød, orange, gul, grøn, lyseblå, blå, lilla, lyserød, brun, grå
i midten, øverst til venstre, øverst, øverst til højre, til venstre, til højre, nederst til venstre, nederst,
  nederst til højre
lille størrelse, stor størrelse
billede / tegning

de {x} {p}
{} Hintergrund
weißer, schwarzer, roter, orangefarbener / oranger, gelber, grüner, hellblauer, blauer, lila / violetter,
  rosa / pinker, brauner, grauer
in der Mitte / mittig, oben links / links oben, oben, oben rechts / rechts oben, links, rechts,
  unten links / links unten, unten, unten rechts / rechts unten
klein / kleine Größe, groß / große Größe
Bild / Zeichnung

el {x} {p}
{} φόντο
λευκό / άσπρο, μαύρο, κόκκινο, πορτοκαλί, κίτρινο, πράσινο, γαλάζιο / ανοιχτό μπλε, μπλε, μωβ / μοβ, ροζ, καφέ, γκρι
στο κέντρο / στη μέση, πάνω αριστερά, πάνω, πάνω δεξιά, αριστερά, δεξιά, κάτω αριστερά, κάτω, κάτω δεξιά
μικρό μέγεθος, μεγάλο μέγεθος
εικόνα / ζωγραφιά

es {x} {p}
fondo {} / fondo de color {}
blanco, negro, rojo, naranja, amarillo, verde, azul claro / celeste, azul, morado / violeta, rosa, marrón, gris
en el centro / en el medio, arriba a la izquierda, arriba, arriba a la derecha, a la izquierda, a la derecha,
  abajo a la izquierda, abajo, abajo a la derecha
tamaño pequeño, tamaño grande
imagen / dibujo

et {x} {p}
{} taust
valge, must, punane, oranž, kollane, roheline, helesinine, sinine, lilla, roosa, pruun, hall
keskel, üleval vasakul, üleval, üleval paremal, vasakul, paremal, all vasakul, all, all paremal
väike suurus, suur suurus
pilt / joonistus

eu {x} {p}
hondo {}
zuria, beltza, gorria, laranja, horia, berdea, urdin argia, urdina, morea, arrosa, marroia, grisa
erdian, goian ezkerrean, goian, goian eskuinean, ezkerrean, eskuinean, behean ezkerrean, behean, behean eskuinean
tamaina txikia, tamaina handia
irudia / marrazkia

fa {x} {p}
پس‌زمینه {}
سفید, سیاه / مشکی, قرمز, نارنجی, زرد, سبز, آبی روشن, آبی, بنفش, صورتی, قهوه‌ای, خاکستری / طوسی
در وسط / در مرکز, بالا سمت چپ, بالا, بالا سمت راست, سمت چپ, سمت راست, پایین سمت چپ, پایین, پایین سمت راست
اندازه کوچک, اندازه بزرگ
تصویر / نقاشی

fi {x} {p}
{} tausta
valkoinen, musta, punainen, oranssi, keltainen, vihreä, vaaleansininen, sininen, violetti, vaaleanpunainen / pinkki,
  ruskea, harmaa
keskellä, ylhäällä vasemmalla / vasemmassa yläkulmassa, ylhäällä, ylhäällä oikealla / oikeassa yläkulmassa,
  vasemmalla, oikealla, alhaalla vasemmalla / vasemmassa alakulmassa, alhaalla,
  alhaalla oikealla / oikeassa alakulmassa
pieni koko, suuri koko / iso koko
kuva / piirros

fil {x} {p}
{} likuran
puting, itim na, pulang, kahel na, dilaw na, berdeng / luntiang, mapusyaw na asul na, asul na, lilang, rosas na,
  kayumangging, abuhing / kulay-abong
sa gitna, sa kaliwang itaas, sa itaas, sa kanang itaas, sa kaliwa, sa kanan, sa kaliwang ibaba, sa ibaba,
  sa kanang ibaba
maliit na sukat, malaking sukat
larawan / guhit

fr {x} {p}
fond {}
blanc, noir, rouge, orange, jaune, vert, bleu clair / bleu ciel, bleu, violet, rose, marron / brun, gris
au centre / au milieu, en haut à gauche, en haut, en haut à droite, à gauche, à droite, en bas à gauche, en bas,
  en bas à droite
petite taille, grande taille
image / dessin

ga {x} {p}
cúlra {}
bán, dubh, dearg, oráiste / flannbhuí, buí, glas, gorm éadrom, gorm, corcra, bándearg, donn, liath
sa lár, ag an mbarr ar chlé, ag an mbarr, ag an mbarr ar dheis, ar chlé, ar dheis, ag an mbun ar chlé, ag an mbun,
  ag an mbun ar dheis
méid beag, méid mór
pictiúr / líníocht

gl {x} {p}
fondo {}
branco, negro, vermello, laranxa, amarelo, verde, azul claro, azul, violeta / morado, rosa, marrón, gris
no centro / no medio, arriba á esquerda, arriba, arriba á dereita, á esquerda, á dereita, abaixo á esquerda, abaixo,
  abaixo á dereita
tamaño pequeno, tamaño grande
imaxe / debuxo

gu {p} {x}
{} પૃષ્ઠભૂમિ
સફેદ, કાળી, લાલ, નારંગી, પીળી, લીલી, આછી વાદળી, વાદળી, જાંબલી, ગુલાબી, કથ્થઈ, રાખોડી
મધ્યમાં / વચ્ચે, ઉપર ડાબી બાજુ, ઉપર, ઉપર જમણી બાજુ, ડાબી બાજુ, જમણી બાજુ, નીચે ડાબી બાજુ, નીચે, નીચે જમણી બાજુ
નાનું કદ, મોટું કદ
ચિત્ર / છબી

he {x} {p}
רקע {}
לבן, שחור, אדום, כתום, צהוב, ירוק, תכלת / כחול בהיר, כחול, סגול, ורוד, חום, אפור
במרכז / באמצע, למעלה משמאל, למעלה, למעלה מימין, משמאל / בצד שמאל, מימין / בצד ימין, למטה משמאל, למטה, למטה מימין
גודל קטן, גודל גדול
תמונה / ציור

hi {p} {x}
{} पृष्ठभूमि
सफ़ेद, काली, लाल, नारंगी, पीली, हरी, हल्की नीली / आसमानी, नीली, बैंगनी, गुलाबी, भूरी, स्लेटी
बीच में, ऊपर बाईं ओर / ऊपर बाएँ, ऊपर, ऊपर दाईं ओर / ऊपर दाएँ, बाईं ओर / बाएँ, दाईं ओर / दाएँ,
  नीचे बाईं ओर / नीचे बाएँ, नीचे, नीचे दाईं ओर / नीचे दाएँ
छोटा आकार, बड़ा आकार
चित्र / तस्वीर

hr {x} {p}
{} pozadina
bijela, crna, crvena, narančasta, žuta, zelena, svijetloplava, plava, ljubičasta, ružičasta, smeđa, siva
u sredini / u središtu, gore lijevo, gore, gore desno, lijevo, desno, dolje lijevo, dolje, dolje desno
mala veličina, velika veličina
slika / crtež

hu {p} {x}
{} háttér
fehér, fekete, piros / vörös, narancssárga, sárga, zöld, világoskék, kék, lila, rózsaszín, barna, szürke
középen, bal felső sarokban / balra fent, felül / fent, jobb felső sarokban / jobbra fent, bal oldalon / balra,
  jobb oldalon / jobbra, bal alsó sarokban / balra lent, alul / lent, jobb alsó sarokban / jobbra lent
kis méret, nagy méret
kép / rajz

hy {p} {x}
{} ֆոն
սպիտակ, սև, կարմիր, նարնջագույն, դեղին, կանաչ, բաց կապույտ / երկնագույն, կապույտ, մանուշակագույն, վարդագույն,
  շագանակագույն / դարչնագույն, մոխրագույն
կենտրոնում / մեջտեղում, վերևում ձախ կողմում, վերևում, վերևում աջ կողմում, ձախ կողմում, աջ կողմում,
  ներքևում ձախ կողմում, ներքևում, ներքևում աջ կողմում
փոքր չափ, մեծ չափ
նկար / պատկեր

id {x} {p}
latar belakang {} / latar {}
putih, hitam, merah, oranye / jingga, kuning, hijau, biru muda, biru, ungu, merah muda, cokelat / coklat, abu-abu
di tengah, di kiri atas, di atas, di kanan atas, di kiri / di sebelah kiri, di kanan / di sebelah kanan, di kiri bawah,
  di bawah, di kanan bawah
ukuran kecil, ukuran besar
gambar / ilustrasi

is {x} {p}
{} bakgrunnur
hvítur, svartur, rauður, appelsínugulur, gulur, grænn, ljósblár, blár, fjólublár, bleikur, brúnn, grár
í miðjunni / í miðju, efst til vinstri, efst, efst til hægri, til vinstri, til hægri, neðst til vinstri, neðst,
  neðst til hægri
lítil stærð, stór stærð
mynd / teikning

it {x} {p}
sfondo {}
bianco, nero, rosso, arancione, giallo, verde, azzurro / celeste, blu, viola, rosa, marrone, grigio
al centro / in mezzo, in alto a sinistra, in alto, in alto a destra, a sinistra, a destra, in basso a sinistra,
  in basso, in basso a destra
piccole dimensioni, grandi dimensioni
immagine / disegno

ka {p} {x}
{} ფონი
თეთრი, შავი, წითელი, ნარინჯისფერი, ყვითელი, მწვანე, ცისფერი / ღია ლურჯი, ლურჯი, იისფერი, ვარდისფერი, ყავისფერი,
  ნაცრისფერი
ცენტრში / შუაში, ზემოთ მარცხნივ, ზემოთ, ზემოთ მარჯვნივ, მარცხნივ, მარჯვნივ, ქვემოთ მარცხნივ, ქვემოთ, ქვემოთ მარჯვნივ
პატარა ზომა, დიდი ზომა
სურათი / ნახატი

kk {p} {x}
{} фон
ақ, қара, қызыл, қызғылт сары, сары, жасыл, көгілдір / ашық көк, көк, күлгін, қызғылт, қоңыр, сұр
ортасында / ортада, жоғарғы сол жақта, жоғарыда, жоғарғы оң жақта, сол жақта, оң жақта, төменгі сол жақта, төменде,
  төменгі оң жақта
кіші өлшем / шағын өлшем, үлкен өлшем
сурет

km {x}{p}
ផ្ទៃខាងក្រោយពណ៌{}
ស, ខ្មៅ, ក្រហម, ទឹកក្រូច, លឿង, បៃតង, ខៀវខ្ចី / ផ្ទៃមេឃ, ខៀវ, ស្វាយ, ផ្កាឈូក, ត្នោត, ប្រផេះ
នៅកណ្តាល, នៅខាងលើផ្នែកខាងឆ្វេង, នៅខាងលើ, នៅខាងលើផ្នែកខាងស្តាំ, នៅខាងឆ្វេង, នៅខាងស្តាំ, នៅខាងក្រោមផ្នែកខាងឆ្វេង,
  នៅខាងក្រោម, នៅខាងក្រោមផ្នែកខាងស្តាំ
ទំហំតូច, ទំហំធំ
រូបភាព / គំនូរ

kn {p} {x}
{} ಹಿನ್ನೆಲೆ / {} ಬಣ್ಣದ ಹಿನ್ನೆಲೆ
ಬಿಳಿ, ಕಪ್ಪು, ಕೆಂಪು, ಕಿತ್ತಳೆ, ಹಳದಿ, ಹಸಿರು, ತಿಳಿ ನೀಲಿ, ನೀಲಿ, ನೇರಳೆ, ಗುಲಾಬಿ, ಕಂದು, ಬೂದು
ಮಧ್ಯದಲ್ಲಿ, ಮೇಲೆ ಎಡಭಾಗದಲ್ಲಿ, ಮೇಲೆ, ಮೇಲೆ ಬಲಭಾಗದಲ್ಲಿ, ಎಡಭಾಗದಲ್ಲಿ, ಬಲಭಾಗದಲ್ಲಿ, ಕೆಳಗೆ ಎಡಭಾಗದಲ್ಲಿ, ಕೆಳಗೆ,
  ಕೆಳಗೆ ಬಲಭಾಗದಲ್ಲಿ
ಸಣ್ಣ ಗಾತ್ರ / ಚಿಕ್ಕ ಗಾತ್ರ, ದೊಡ್ಡ ಗಾತ್ರ
ಚಿತ್ರ

lo {x}{p}
ພື້ນຫຼັງສີ{}
ຂາວ, ດຳ, ແດງ, ສົ້ມ, ເຫຼືອງ, ຂຽວ, ຟ້າອ່ອນ, ຟ້າ, ມ່ວງ, ບົວ, ນ້ຳຕານ, ເທົາ
ຢູ່ກາງ, ຢູ່ມຸມຊ້າຍເທິງ, ຢູ່ດ້ານເທິງ, ຢູ່ມຸມຂວາເທິງ, ຢູ່ດ້ານຊ້າຍ, ຢູ່ດ້ານຂວາ, ຢູ່ມຸມຊ້າຍລຸ່ມ, ຢູ່ດ້ານລຸ່ມ, ຢູ່ມຸມຂວາລຸ່ມ
ຂະໜາດນ້ອຍ, ຂະໜາດໃຫຍ່
ຮູບພາບ / ຮູບແຕ້ມ

lt {x} {p}
{} fonas
baltas, juodas, raudonas, oranžinis, geltonas, žalias, žydras / šviesiai mėlynas, mėlynas, violetinis, rožinis, rudas,
  pilkas
viduryje, viršuje kairėje, viršuje, viršuje dešinėje, kairėje, dešinėje, apačioje kairėje, apačioje, apačioje dešinėje
mažas dydis, didelis dydis
paveikslėlis / piešinys

lv {x} {p}
{} fons
balts, melns, sarkans, oranžs, dzeltens, zaļš, gaiši zils / gaišzils, zils, violets, rozā, brūns, pelēks
centrā / vidū, augšā pa kreisi, augšā, augšā pa labi, pa kreisi, pa labi, apakšā pa kreisi, apakšā, apakšā pa labi
mazs izmērs, liels izmērs
attēls / zīmējums

mk {x} {p}
{} позадина
бела, црна, црвена, портокалова, жолта, зелена, светлосина, сина, виолетова, розова, кафеава / кафена, сива
во центарот / во средината, горе лево, горе, горе десно, лево, десно, долу лево, долу, долу десно
мала големина, голема големина
слика / цртеж

ml {p} {x}
{} പശ്ചാത്തലം
വെളുത്ത, കറുത്ത, ചുവന്ന, ഓറഞ്ച്, മഞ്ഞ, പച്ച, ഇളം നീല, നീല, പർപ്പിൾ, പിങ്ക്, തവിട്ട്, ചാരനിറമുള്ള
നടുവിൽ / മധ്യത്തിൽ, മുകളിൽ ഇടതുവശത്ത്, മുകളിൽ, മുകളിൽ വലതുവശത്ത്, ഇടതുവശത്ത്, വലതുവശത്ത്, താഴെ ഇടതുവശത്ത്, താഴെ,
  താഴെ വലതുവശത്ത്
ചെറിയ വലുപ്പം, വലിയ വലുപ്പം
ചിത്രീകരണം

mn {p} {x}
{} дэвсгэр
цагаан, хар, улаан, улбар шар, шар, ногоон, цайвар цэнхэр, цэнхэр / хөх, нил ягаан, ягаан, бор / хүрэн, саарал
голд / төвд, зүүн дээд буланд, дээд талд, баруун дээд буланд, зүүн талд, баруун талд, зүүн доод буланд, доод талд,
  баруун доод буланд
жижиг хэмжээ, том хэмжээ
зураг

mr {p} {x}
{} पार्श्वभूमी
पांढरी, काळी, लाल, नारिंगी, पिवळी, हिरवी, फिकट निळी / आकाशी, निळी, जांभळी, गुलाबी, तपकिरी, राखाडी / करडी
मध्यभागी, वर डावीकडे, वर, वर उजवीकडे, डावीकडे, उजवीकडे, खाली डावीकडे, खाली, खाली उजवीकडे
लहान आकार, मोठा आकार
चित्र

ms {x} {p}
latar belakang {}
putih, hitam, merah, jingga / oren, kuning, hijau, biru muda, biru, ungu, merah jambu, perang / coklat, kelabu
di tengah, di kiri atas, di atas, di kanan atas, di kiri / di sebelah kiri, di kanan / di sebelah kanan, di kiri bawah,
  di bawah, di kanan bawah
saiz kecil, saiz besar
gambar / lukisan

my {p} {x}
{}ရောင် နောက်ခံ
အဖြူ, အနက်, အနီ, လိမ္မော်, အဝါ, အစိမ်း, အပြာနု, အပြာ, ခရမ်း, ပန်း, အညို, မီးခိုး
အလယ်တွင်, ဘယ်ဘက်အပေါ်တွင်, အပေါ်တွင်, ညာဘက်အပေါ်တွင်, ဘယ်ဘက်တွင်, ညာဘက်တွင်, ဘယ်ဘက်အောက်တွင်, အောက်တွင်,
  ညာဘက်အောက်တွင်
အရွယ်အစားသေး, အရွယ်အစားကြီး
ပုံ

nb {x} {p}
{} bakgrunn
hvit, svart, rød, oransje, gul, grønn, lyseblå, blå, lilla, rosa, brun, grå
i midten, øverst til venstre, øverst, øverst til høyre, til venstre, til høyre, nederst til venstre, nederst,
  nederst til høyre
liten størrelse, stor størrelse
bilde / tegning

ne {p} {x}
{} पृष्ठभूमि
सेतो, कालो, रातो, सुन्तला रङ्गको, पहेँलो, हरियो, हल्का नीलो / आकाशे नीलो, नीलो, बैजनी, गुलाबी, खैरो, खरानी रङ्गको
बीचमा, माथि बायाँ, माथि, माथि दायाँ, बायाँतिर, दायाँतिर, तल बायाँ, तल, तल दायाँ
सानो आकार, ठूलो आकार
चित्र / तस्बिर

nl {x} {p}
{} achtergrond
witte, zwarte, rode, oranje, gele, groene, lichtblauwe, blauwe, paarse, roze, bruine, grijze
in het midden, linksboven, bovenaan, rechtsboven, links, rechts, linksonder, onderaan, rechtsonder
klein formaat, groot formaat
afbeelding / tekening

pa {p} {x}
{} ਪਿਛੋਕੜ
ਚਿੱਟਾ, ਕਾਲਾ, ਲਾਲ, ਸੰਤਰੀ, ਪੀਲਾ, ਹਰਾ, ਹਲਕਾ ਨੀਲਾ, ਨੀਲਾ, ਜਾਮਨੀ, ਗੁਲਾਬੀ, ਭੂਰਾ, ਸਲੇਟੀ
ਵਿਚਕਾਰ, ਉੱਪਰ ਖੱਬੇ ਪਾਸੇ, ਉੱਪਰ, ਉੱਪਰ ਸੱਜੇ ਪਾਸੇ, ਖੱਬੇ ਪਾਸੇ, ਸੱਜੇ ਪਾਸੇ, ਹੇਠਾਂ ਖੱਬੇ ਪਾਸੇ, ਹੇਠਾਂ, ਹੇਠਾਂ ਸੱਜੇ ਪਾਸੇ
ਛੋਟਾ ਆਕਾਰ, ਵੱਡਾ ਆਕਾਰ
ਤਸਵੀਰ / ਚਿੱਤਰ

pl {x} {p}
{} tło
białe, czarne, czerwone, pomarańczowe, żółte, zielone, jasnoniebieskie / błękitne, niebieskie, fioletowe, różowe,
  brązowe, szare
na środku / pośrodku, w lewym górnym rogu, na górze / u góry, w prawym górnym rogu, po lewej, po prawej,
  w lewym dolnym rogu, na dole / u dołu, w prawym dolnym rogu
mały rozmiar, duży rozmiar
obrazek / rysunek

pt {x} {p}
fundo {}
branco, preto, vermelho, laranja, amarelo, verde, azul-claro, azul, roxo, rosa / cor-de-rosa, marrom, cinza
no centro / no meio, no canto superior esquerdo, em cima, no canto superior direito, à esquerda, à direita,
  no canto inferior esquerdo, embaixo, no canto inferior direito
tamanho pequeno, tamanho grande
imagem / desenho

ro {x} {p}
fundal {}
alb, negru, roșu, portocaliu, galben, verde, albastru deschis / bleu, albastru, violet / mov, roz, maro, gri
în centru / în mijloc, în stânga sus, sus, în dreapta sus, în stânga, în dreapta, în stânga jos, jos, în dreapta jos
dimensiune mică, dimensiune mare
imagine / desen

ru {x} {p}
{} фон
белый, чёрный, красный, оранжевый, жёлтый, зелёный, голубой / светло-синий, синий, фиолетовый, розовый, коричневый,
  серый
в центре / посередине, вверху слева / слева вверху, вверху / сверху, вверху справа / справа вверху, слева, справа,
  внизу слева / слева внизу, внизу / снизу, внизу справа / справа внизу
маленький размер, большой размер
картинка / рисунок

si {p} {x}
{} පසුබිම
සුදු, කළු, රතු, තැඹිලි, කහ, කොළ, ලා නිල්, නිල්, දම්, රෝස, දුඹුරු, අළු
මැද, ඉහළ වම් පැත්තේ, ඉහළින්, ඉහළ දකුණු පැත්තේ, වම් පැත්තේ, දකුණු පැත්තේ, පහළ වම් පැත්තේ, පහළින්, පහළ දකුණු පැත්තේ
කුඩා ප්‍රමාණය, විශාල ප්‍රමාණය
පින්තූරය / චිත්‍රය

sk {x} {p}
{} pozadie
biele, čierne, červené, oranžové, žlté, zelené, svetlomodré, modré, fialové, ružové, hnedé, sivé
v strede, vľavo hore, hore, vpravo hore, vľavo, vpravo, vľavo dole, dole, vpravo dole
malá veľkosť, veľká veľkosť
obrázok / kresba

sl {x} {p}
{} ozadje
belo, črno, rdeče, oranžno, rumeno, zeleno, svetlo modro / svetlomodro, modro, vijolično, rožnato, rjavo, sivo
na sredini / v sredini, zgoraj levo, zgoraj, zgoraj desno, levo / na levi, desno / na desni, spodaj levo, spodaj,
  spodaj desno
majhna velikost, velika velikost
slika / risba

sq {x} {p}
sfond {}
i bardhë, i zi, i kuq, portokalli, i verdhë, i gjelbër / jeshil, blu i çelët, blu, vjollcë, rozë, kafe, gri
në qendër / në mes, lart majtas, lart, lart djathtas, majtas / në të majtë, djathtas / në të djathtë, poshtë majtas,
  poshtë, poshtë djathtas
madhësi e vogël, madhësi e madhe
pamje / vizatim

sr {x} {p}
{} позадина
бела, црна, црвена, наранџаста, жута, зелена, светлоплава, плава, љубичаста, розе / ружичаста, браон / смеђа, сива
у средини / у центру, горе лево, горе, горе десно, лево, десно, доле лево, доле, доле десно
мала величина, велика величина
слика / цртеж

sv {x} {p}
{} bakgrund
vit, svart, röd, orange, gul, grön, ljusblå, blå, lila, rosa, brun, grå
i mitten, uppe till vänster / längst upp till vänster, överst / högst upp, uppe till höger / längst upp till höger,
  till vänster, till höger, nere till vänster / längst ner till vänster, nederst / längst ner,
  nere till höger / längst ner till höger
liten storlek, stor storlek
bild / teckning

sw {x} {p}
mandharinyuma {}
nyeupe, nyeusi, nyekundu, ya chungwa / ya rangi ya chungwa, ya manjano / ya njano, ya kijani, ya bluu isiyokolea,
  ya bluu, ya zambarau, ya waridi, ya kahawia / ya hudhurungi, ya kijivu
katikati, juu kushoto, juu, juu kulia, kushoto / upande wa kushoto, kulia / upande wa kulia, chini kushoto, chini,
  chini kulia
ukubwa mdogo, ukubwa mkubwa
picha / mchoro

ta {p} {x}
{} நிறப் பின்னணி
வெள்ளை, கருப்பு, சிவப்பு, ஆரஞ்சு, மஞ்சள், பச்சை, இளநீல / வெளிர் நீல, நீல, ஊதா, இளஞ்சிவப்பு, பழுப்பு, சாம்பல்
நடுவில் / மையத்தில், மேலே இடதுபுறம், மேலே, மேலே வலதுபுறம், இடதுபுறம், வலதுபுறம், கீழே இடதுபுறம், கீழே, கீழே வலதுபுறம்
சிறிய அளவு, பெரிய அளவு
படம் / ஓவியம்

te {p} {x}
{} రంగు నేపథ్యం
తెలుపు, నలుపు, ఎరుపు, నారింజ, పసుపు, ఆకుపచ్చ, లేత నీలి, నీలి, ఊదా, గులాబీ, గోధుమ, బూడిద
మధ్యలో, పైన ఎడమవైపు, పైన, పైన కుడివైపు, ఎడమవైపు, కుడివైపు, కింద ఎడమవైపు, కింద, కింద కుడివైపు
చిన్న పరిమాణం, పెద్ద పరిమాణం
చిత్రం / బొమ్మ

th {x}อยู่{p}
พื้นหลังสี{}
ขาว, ดำ, แดง, ส้ม, เหลือง, เขียว, ฟ้า, น้ำเงิน, ม่วง, ชมพู, น้ำตาล, เทา
ตรงกลาง, มุมซ้ายบน / ด้านบนซ้าย, ด้านบน, มุมขวาบน / ด้านบนขวา, ด้านซ้าย / ทางซ้าย, ด้านขวา / ทางขวา,
  มุมซ้ายล่าง / ด้านล่างซ้าย, ด้านล่าง, มุมขวาล่าง / ด้านล่างขวา
ขนาดเล็ก, ขนาดใหญ่
รูปภาพ / ภาพวาด

tr {p} {x}
{} arka plan
beyaz, siyah, kırmızı, turuncu, sarı, yeşil, açık mavi, mavi, mor, pembe, kahverengi, gri
ortada, sol üstte / sol üst köşede, üstte, sağ üstte / sağ üst köşede, solda, sağda, sol altta / sol alt köşede, altta,
  sağ altta / sağ alt köşede
küçük boy, büyük boy
resim / çizim

uk {x} {p}
{} фон
білий, чорний, червоний, помаранчевий / оранжевий, жовтий, зелений, блакитний / світло-синій, синій, фіолетовий,
  рожевий, коричневий, сірий
у центрі / посередині, угорі ліворуч / вгорі зліва, угорі / вгорі, угорі праворуч / вгорі справа, ліворуч / зліва,
  праворуч / справа, унизу ліворуч / внизу зліва, унизу / внизу, унизу праворуч / внизу справа
маленький розмір, великий розмір
зображення / малюнок

ur {p} {x}
{} پس منظر
سفید, سیاہ / کالا, سرخ / لال, نارنجی, پیلا, سبز / ہرا, ہلکا نیلا / آسمانی, نیلا, جامنی, گلابی, بھورا, سرمئی / خاکستری
درمیان میں / بیچ میں, اوپر بائیں جانب, اوپر, اوپر دائیں جانب, بائیں جانب, دائیں جانب, نیچے بائیں جانب, نیچے,
  نیچے دائیں جانب
چھوٹا سائز, بڑا سائز
تصویر

uz {p} {x}
{} fon
oq, qora, qizil, to'q sariq, sariq, yashil, havorang / och ko'k, ko'k, binafsharang, pushti, jigarrang, kulrang
markazda / o'rtada, yuqori chapda, yuqorida, yuqori o'ngda, chapda, o'ngda, pastki chapda, pastda, pastki o'ngda
kichik o'lcham, katta o'lcham
rasm / surat

vi {x} {p}
nền màu {} / nền {}
trắng, đen, đỏ, cam, vàng, xanh lá cây / xanh lục, xanh da trời / xanh lam nhạt, xanh dương / xanh lam, tím, hồng, nâu,
  xám
ở giữa / ở chính giữa, ở góc trên bên trái, ở phía trên, ở góc trên bên phải, ở bên trái, ở bên phải,
  ở góc dưới bên trái, ở phía dưới, ở góc dưới bên phải
kích thước nhỏ / cỡ nhỏ, kích thước lớn / cỡ lớn
hình ảnh / tranh vẽ

yue {x}喺{p}
{}背景
白色, 黑色, 紅色, 橙色, 黃色, 綠色, 淺藍色 / 天藍色, 藍色, 紫色, 粉紅色, 啡色, 灰色
中間 / 正中間, 左上角, 上面, 右上角, 左邊, 右邊, 左下角, 下面, 右下角
細尺寸, 大尺寸
圖片 / 圖畫

zh-Hant {x}在{p}
{}背景
白色, 黑色, 紅色, 橙色 / 橘色, 黃色, 綠色, 淺藍色 / 天藍色, 藍色, 紫色, 粉紅色 / 粉色, 棕色 / 褐色, 灰色
中央 / 中間, 左上角, 上方 / 上面, 右上角, 左邊 / 左側, 右邊 / 右側, 左下角, 下方 / 下面, 右下角
小尺寸, 大尺寸
圖片 / 圖畫
"""
