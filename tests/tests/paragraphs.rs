//! What `lockwatch report` says of a recording of every stall that the lab can make
//! (tests/recordings/every-stall/, each by `record --once` on 6.18): a change of its words
//! is looked at before it lands.

use std::{collections::BTreeSet, fs, path::Path};

use clap::ValueEnum as _;
use lockwatch::{
    detect::Detectors,
    recording::{Chosen, Reader, Replayed},
    report::text::{self, Style},
};
use lockwatch_tests::truth::Scenario;

const STYLE: Style = Style {
    width: 120,
    color: false,
};

#[test]
fn every_stall_of_the_lab_in_words() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recordings/every-stall");
    let recorded: BTreeSet<String> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
        .collect();
    let made: BTreeSet<String> = Scenario::value_variants()
        .iter()
        .map(|scenario| scenario.name().to_owned())
        .collect();
    assert_eq!(recorded, made, "recordings, and stalls of the lab");
    for name in made {
        let reader = Reader::open(&folder.join(&name).with_extension("lwr")).unwrap();
        let replayed = Replayed::from_reader(reader, Chosen::Worst, &Detectors::default());
        assert_eq!(replayed.damage, None, "{name}");
        let (_, survey) = replayed.chosen.as_ref().unwrap();
        let report = replayed.report_of(survey, &Detectors::default());
        let mut out = Vec::new();
        text::write_report(&mut out, &report, STYLE).unwrap();
        insta::assert_snapshot!(name, String::from_utf8(out).unwrap());
    }
}
