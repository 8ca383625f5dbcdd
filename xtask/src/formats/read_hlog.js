// Says as JSON what hdr-histogram-js reads in a log: each interval, the sum of each tag, and
// the percentile table of all waits, in ms.
//
// usage: read_hlog.js FILE

const fs = require("fs");
const hdr = require("hdr-histogram-js");

function figures(histogram) {
  return {
    count: histogram.totalCount,
    p50: histogram.getValueAtPercentile(50),
    p99: histogram.getValueAtPercentile(99),
    p999: histogram.getValueAtPercentile(99.9),
    max: histogram.maxValue,
  };
}

const reader = new hdr.HistogramLogReader(fs.readFileSync(process.argv[2], "utf8"));
const intervals = [];
const sums = {};
for (let read; (read = reader.nextIntervalHistogram()) !== null; ) {
  intervals.push({
    tag: read.tag,
    start_ms: read.startTimeStampMsec,
    end_ms: read.endTimeStampMsec,
    ...figures(read),
  });
  if (read.tag in sums) {
    sums[read.tag].add(read);
  } else {
    sums[read.tag] = read;
  }
}
const all = Object.entries(sums).map(([tag, sum]) => [tag, figures(sum)]);
const waits = Object.keys(sums).filter((tag) => tag.startsWith("wait/")).map((tag) => sums[tag]);
waits.slice(1).forEach((sum) => waits[0].add(sum));
const table = waits.length > 0 ? waits[0].outputPercentileDistribution(5, 1e6) : "";
console.log(JSON.stringify({ intervals, sums: Object.fromEntries(all), table }));
