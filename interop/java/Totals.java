// Totals: a Kafka Streams application as anybody writes it. It reads orders that are Avro, adds their quantities up for each
// key, and writes totals that are Avro; both by Apicurio's serde with Confluent's 4-byte ids. It knows nothing of Postern.
//   java -cp 'lib/*' Totals.java BOOTSTRAP REGISTRY-URL INPUT OUTPUT STATE-DIR
import io.apicurio.registry.serde.Default4ByteIdHandler;
import io.apicurio.registry.serde.avro.AvroKafkaDeserializer;
import io.apicurio.registry.serde.avro.AvroKafkaSerializer;
import io.apicurio.registry.serde.strategy.TopicIdStrategy;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.CountDownLatch;
import org.apache.avro.Schema;
import org.apache.avro.generic.GenericData;
import org.apache.avro.generic.GenericRecord;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;

public class Totals {
  static final Schema TOTAL = new Schema.Parser().parse(
      "{\"type\":\"record\",\"name\":\"Total\",\"namespace\":\"shop\",\"fields\":[{\"name\":\"customer\",\"type\":\"string\"},"
          + "{\"name\":\"total\",\"type\":\"long\"},{\"name\":\"last\",\"type\":[\"null\",{\"type\":\"long\",\"logicalType\":\"timestamp-millis\"}],\"default\":null}]}");

  public static void main(String[] args) throws Exception {
    Map<String, Object> registry = Map.of(
        "apicurio.registry.url", args[1],
        "apicurio.registry.id-handler", Default4ByteIdHandler.class.getName(),
        "apicurio.registry.artifact-resolver-strategy", TopicIdStrategy.class.getName(),
        "apicurio.registry.auto-register", true,
        "apicurio.registry.headers.enabled", false);
    Serde<GenericRecord> avro = Serdes.serdeFrom(new AvroKafkaSerializer<GenericRecord>(), new AvroKafkaDeserializer<GenericRecord>());
    avro.configure(registry, false);

    StreamsBuilder builder = new StreamsBuilder();
    builder.stream(args[2], Consumed.with(Serdes.String(), avro))
        .groupByKey(Grouped.with(Serdes.String(), avro))
        .aggregate(() -> 0L, (customer, order, sum) -> sum + ((Number) order.get("qty")).longValue(), Materialized.with(Serdes.String(), Serdes.Long()))
        .toStream()
        .mapValues((customer, sum) -> {
          GenericRecord total = new GenericData.Record(TOTAL);
          total.put("customer", customer);
          total.put("total", sum);
          total.put("last", 1769853600000L);
          return total;
        })
        .to(args[3], Produced.with(Serdes.String(), avro));

    Properties p = new Properties();
    p.put(StreamsConfig.APPLICATION_ID_CONFIG, "totals");
    p.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    p.put(StreamsConfig.STATE_DIR_CONFIG, args[4]);
    p.put(StreamsConfig.STATESTORE_CACHE_MAX_BYTES_CONFIG, 0); // every sum is told, not only the last
    p.put(StreamsConfig.COMMIT_INTERVAL_MS_CONFIG, 100);
    p.put("auto.offset.reset", "earliest");
    KafkaStreams streams = new KafkaStreams(builder.build(), p);
    CountDownLatch done = new CountDownLatch(1);
    streams.setUncaughtExceptionHandler(e -> {
      e.printStackTrace();
      Runtime.getRuntime().halt(1);
      return null;
    });
    Runtime.getRuntime().addShutdownHook(new Thread(() -> { streams.close(); done.countDown(); }));
    streams.start();
    done.await();
  }
}
